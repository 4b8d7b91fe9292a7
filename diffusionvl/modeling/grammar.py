"""Grammars: a JSON schema, a regular expression, a Lark grammar or choices, compiled for a tokenizer by llguidance.

llguidance (extra `constrain`) is needed only where an answer is constrained.

Legend: W words of 32 tokens.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .constraint import Constraint
from .errors import UserError
from .settings import SETTINGS

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    INSTALLED = True
except ImportError:
    INSTALLED = False

MAX_BYTES = 2**18  # of a schema or grammar, whose compilation holds up the engine
MAX_GRAMMARS = 128  # compiled grammars that are kept for a tokenizer
CONSTRAINTS = [name for name, setting in SETTINGS.items() if setting.group == "constraint"]
# As `json.dumps` writes it: with one form only, more tokens are forced.
JSON_TEXT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
NO_CHARACTER = chr(0x10FFFE)

_lock = threading.Lock()
_vocabularies: WeakKeyDictionary[Any, dict[Any, "Vocabulary"]] = WeakKeyDictionary()


class Vocabulary:
    """A tokenizer as llguidance reads it, and the grammars that were compiled for it.

    Args:
        tokenizer: A fast tokenizer of transformers.
        ends: Ids that end an answer.
        unwritable: Ids that no answer may hold, such as the mask token.

    Attributes:
        ends: Those that the tokenizer knows.
        written: The tokens that an answer may hold, as words of 32 bits [W].

    Raises:
        UserError: llguidance cannot read the tokenizer, or no id that ends an answer is a special token of it.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int], unwritable: Collection[int]) -> None:
        self.ends = [end for end in ends if end < len(tokenizer)]
        if not self.ends:
            raise UserError(
                f"eos_token_id={[*ends]}: a constrained answer ends with an end of sequence, and the tokenizer has "
                "none of these ids; give one that it has"
            )
        try:
            texts, special = _read_tokenizer(tokenizer)
            self.reader = LLTokenizer(texts, eos_token=self.ends)
        except ValueError as error:
            raise UserError(
                f"a constraint cannot be used with this tokenizer ({type(tokenizer).__name__}): {error}"
            ) from error
        strange = [end for end in self.ends if not self.reader.is_special_token(end)]
        if strange:
            raise UserError(
                f"eos_token_id={strange[0]} stands for the text {tokenizer.decode(strange[:1])!r}, which a constrained "
                "answer may hold; give ids of special tokens"
            )
        self._unwritable = {*unwritable, *special} - {*self.ends}
        self._grammars: OrderedDict[tuple[str, str], Any] = OrderedDict()
        writable = torch.zeros(-(-self.reader.vocab_size // 32) * 32, dtype=torch.bool)
        writable[: self.reader.vocab_size] = True
        writable[[one for one in self._unwritable if one < len(writable)]] = False
        self.written = _pack(writable)

    def permits(self, token: int) -> bool:
        """Whether an answer may hold a token as text."""
        return token not in self._unwritable and token not in self.ends and token < self.reader.vocab_size

    def compile(self, name: str, text: str) -> Any:
        """A matcher that stands at the beginning of a grammar, compiled once.

        Args:
            name: Name of the setting, for messages.
            text: The grammar, as llguidance reads it.

        Raises:
            UserError: It cannot be compiled; the message gives llguidance's reason.
        """
        key = (name, text)
        if key not in self._grammars:
            matcher = LLMatcher(self.reader, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
            if matcher.is_error():
                raise UserError(f"{name} cannot be used: {_one_line(matcher.get_error())}")
            matcher.compute_bitmask()
            if matcher.is_error():
                reason = _one_line(matcher.get_error())
                raise UserError(f"{name} cannot be used: no text fits it, or it is too complex ({reason})")
            self._grammars[key] = matcher
            if len(self._grammars) > MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(key)
        return self._grammars[key].deep_copy()


def compile_constraint(settings: Any, tokenizer: Any, unwritable: Collection[int]) -> Constraint | None:
    """The constraint of a request's settings, or None without one. Copies of it serve several requests.

    Args:
        settings: A `DiffusionVLGenerationConfig`.
        tokenizer: A fast tokenizer.
        unwritable: Ids that no answer may hold, such as the mask token.

    Raises:
        UserError: There are two constraints, the grammar or the tokenizer cannot be used, or llguidance is missing.
    """
    name = constraint_name(settings)
    if name is None:
        return None
    if tokenizer is None:
        raise UserError(f"{name} needs a tokenizer; give one to the engine, or to generate()")
    if not INSTALLED:
        raise UserError(f"{name} needs llguidance; run: pip install 'diffusionvl[constrain]' (or llguidance)")
    text = _read_grammar(name, getattr(settings, name))
    with _lock:
        known = _vocabularies.setdefault(tokenizer, {})
        key = (len(tokenizer), *settings.eos_token_ids, None, *sorted(unwritable))
        if key not in known:
            known[key] = Vocabulary(tokenizer, settings.eos_token_ids, unwritable)
        return Constraint(known[key].compile(name, text), known[key], settings.max_new_tokens)


def constraint_name(settings: Any) -> str | None:
    """Name of the constraint among some settings, or None without one.

    Raises:
        UserError: There are several.
    """
    names = [name for name in CONSTRAINTS if getattr(settings, name) not in (None, False)]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} constrain the same answer; give one of them")
    return names[0] if names else None


def _read_grammar(name: str, value: Any) -> str:
    """A constraint in llguidance's terms."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be written as JSON: {error}") from error
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size:,} bytes; give at most {MAX_BYTES:,}")
    if name == "regex":
        if (len(text) - len(text.rstrip("\\"))) % 2:
            raise UserError(f"regex cannot be used: {text!r} ends with a backslash that escapes nothing")
        return LLMatcher.grammar_from_regex(text)
    if name == "grammar":
        return LLMatcher.grammar_from_lark(text)
    if name == "choices":
        return LLMatcher.grammar_from_regex("|".join(map(_literal, dict.fromkeys(value))))
    try:
        return LLMatcher.grammar_from_json_schema('{"type": "object"}' if value is True else text, defaults=JSON_TEXT)
    except ValueError as error:
        raise UserError(f"{name} cannot be used: {error}") from error


def _pack(allowed: Tensor) -> Tensor:
    """The inverse, of one place: booleans [32 W] as words [W]."""
    words = (allowed.view(-1, 32).long() << torch.arange(32)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def _read_tokenizer(tokenizer: Any) -> tuple[str, set[int]]:
    """A fast tokenizer as JSON, in which ordinary tokens spell all texts, and the tokens that stand for no text.

    These are the special tokens and those that were added to the vocabulary, which get names that no text holds. Tokens
    that were in the vocabulary when they were added, such as runs of spaces, stay ordinary.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError("it is not a fast one; load it with AutoTokenizer")
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = facts["model"]["vocab"]
    texts = {*vocabulary} if isinstance(vocabulary, dict) else {text for text, _ in vocabulary}
    mute = [token for token in facts["added_tokens"] if token["special"] or token["content"] not in texts]
    for token in mute:
        token["special"] = True
        if token["content"] not in texts:
            token["content"] = f"{NO_CHARACTER}{token['id']}{NO_CHARACTER}"
    return json.dumps({**facts, "padding": None, "truncation": None}), {token["id"] for token in mute}


def _literal(text: str) -> str:
    """A regular expression that matches a text alone."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):X}}}" for one in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
