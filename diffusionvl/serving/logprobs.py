"""Log-probabilities in OpenAI's two shapes."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..modeling.logprobs import TokenLogprob
from .text import BYTE, INCOMPLETE

LEAST = -9999.0  # OpenAI's number for what is impossible, as JSON has no infinity
INSIDE = range(0x80, 0xC0)  # bytes that do not begin a character
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # as pieces of bytes are written


class Spelling:
    """What single tokens of a vocabulary spell. Belongs to one thread, as its tokenizer does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers leave out a space at the beginning of a text, so every token is written after another one.
        self._before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._text_before = tokenizer.decode(self._before)
        self._known: dict[int, bytes] = {}
        self.special = {*tokenizer.all_special_ids}  # they are not text

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token, which may end or begin inside a character."""
        if token not in self._known:
            self._known[token] = self._bytes_of(token)
        return self._known[token]

    def _bytes_of(self, token: int) -> bytes:
        text = self._tokenizer.decode([*self._before, token]).removeprefix(self._text_before)
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if BYTE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        if INCOMPLETE in text and all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece)
        return text.encode()


class Cursor:
    """Where in the text of an answer its tokens begin."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling, self._decoder = spelling, getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def past(self, token: int) -> int:
        """Moves past a token, and returns the number of characters before it."""
        before = self._characters
        if token not in self._spelling.special:
            spelt, (begun, _) = self._spelling.bytes_of(token), self._decoder.getstate()
            if begun and spelt and spelt[0] not in INSIDE:  # the character stays incomplete: one mark, before the token
                before += 1
            self._characters += len(self._decoder.decode(spelt))
        return before


def of_chat(spelling: Spelling, tokens: Sequence[int], entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice: an object for each token."""

    def described(token: int, logprob: float) -> dict[str, Any]:
        spelt = spelling.bytes_of(token)
        return {"token": _written(spelt), "logprob": max(logprob, LEAST), "bytes": [*spelt]}

    content = [
        {**described(token, entry.logprob), "top_logprobs": [described(*one) for one in entry.top]}
        for token, entry in zip(tokens, entries, strict=True)
    ]
    return {"content": content, "refusal": None}


def of_completion(
    spelling: Spelling, tokens: Sequence[int], entries: Sequence[TokenLogprob], cursor: Cursor
) -> dict[str, Any]:
    """`logprobs` of a completion's choice: a list for each fact.

    Args:
        spelling: Spells tokens.
        tokens: Some tokens of the answer.
        entries: What is known of each.
        cursor: Stands before them, and is moved.
    """

    def named(token: int) -> str:
        return _written(spelling.bytes_of(token), "bytes:")

    return {
        "tokens": [named(token) for token in tokens],
        "token_logprobs": [max(entry.logprob, LEAST) for entry in entries],
        # Of tokens that are spelt alike the most probable one counts.
        "top_logprobs": [
            {named(token): max(logprob, LEAST) for token, logprob in reversed(entry.top)} for entry in entries
        ],
        "text_offset": [cursor.past(token) for token in tokens],
    }


def _written(spelt: bytes, mark: str = "") -> str:
    """Bytes as a text; those that are not whole characters as escapes, after a mark."""
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in spelt)
