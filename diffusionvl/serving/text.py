"""The text of an answer while it grows: only what later tokens cannot change."""

import re
from functools import lru_cache
from typing import Any

# Where a vocabulary has tokens of single bytes beside its pieces (Llama's), a run of them is text only if all of it is
# UTF-8: a byte to come may spoil those before it.
BYTE = re.compile("<0x[0-9A-F]{2}>")
INCOMPLETE = "\ufffd"  # what a tokenizer writes for bytes that are not a character (yet)


class GrowingText:
    """Turns tokens into text that is final.

    Held back are the bytes of a character that is not complete, and whatever may be the beginning of a stop text.

    Args:
        tokenizer: Decodes the tokens; special tokens are not text.
        stops: Texts that end the answer and do not belong to it.
    """

    def __init__(self, tokenizer: Any, stops: list[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        # Tokens before `_context` are done with; those up to `_read` are text already, and only show how the next
        # ones are written, such as with a space in front.
        self._context = self._read = 0
        self._held = ""
        self._stopped = False

    def add(self, tokens: list[int], ended: bool) -> str:
        """Takes the tokens that follow, and returns the text that is final now and was not before.

        Args:
            tokens: May be empty.
            ended: Whether none come after them: nothing is held back then.
        """
        if self._stopped:
            return ""
        self._tokens += tokens
        text = self._held + self._decode(ended)
        found = [text.find(stop) for stop in self._stops if stop in text]
        if found:
            self._stopped = True
            return text[: min(found)]
        held = 0 if ended else max((beginning(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decode(self, ended: bool) -> str:
        """The text of the tokens that have not been read, unless it ends inside a character."""
        end = len(self._tokens)
        while not ended and end > self._read and is_byte(self._tokenizer, self._tokens[end - 1]):
            end -= 1
        before = self._text(self._tokens[self._context : self._read])
        text = self._text(self._tokens[self._context : end])
        if text.endswith(INCOMPLETE) and not ended:
            return ""
        self._context, self._read = self._read, end
        return text[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


@lru_cache(maxsize=2**18)
def is_byte(tokenizer: Any, token: int) -> bool:
    """Whether a token is a single byte, written as such."""
    return BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token) or "") is not None


def beginning(text: str, stop: str) -> int:
    """Number of characters at the end of a text with which a stop text may begin.

    >>> beginning("yes.\\n", "\\n\\nUser:"), beginning("yes.", "\\n\\nUser:")
    (1, 0)
    """
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
