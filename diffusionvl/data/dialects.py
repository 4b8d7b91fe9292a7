"""The ways in which programs write a conversation into a record, as turns of one form.

`docs/data.md` shows each of them.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from .record import DataError
from .references import brief

Turn = dict[str, Any]
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
LOSS_KEYS = ("loss", "loss_scale", "weight", "train")  # ms-swift's two, OpenAI's, axolotl's
# Keys that say nothing about what is trained.
METADATA = {"id", "idx", "uid", "uuid", "sample_id", "question_id", "model", "width", "height", "metadata", "license"}
METADATA |= {"dataset", "dataset_name", "source", "data_source", "split", "task", "category", "language"}
SHARED = METADATA | {"image", "images", "video", "videos", "system", "tools"}  # keys of every dialect


class Dialect(NamedTuple):
    """One way to write a conversation.

    Attributes:
        needs: The keys that show that a record is written in it.
        takes: Further keys that it knows.
        turns: Reads the turns from a record.
        in_front: Whether pictures for which no place is written stand in front of the first user turn.
    """

    needs: tuple[str, ...]
    takes: tuple[str, ...]
    turns: Callable[[dict[str, Any], str], list[Any]]
    in_front: bool

    @property
    def knows(self) -> set[str]:
        """All keys that a record in it may have."""
        return SHARED.union(self.needs, self.takes)


def _list_of_turns(key: str) -> Dialect:
    """Turns as a list, or as the JSON text of one, which is how some tables store it."""
    return Dialect((key,), (), lambda raw, name: as_list(raw[key], key, name), in_front=False)


def _question(question: str, answer: str, *more: str) -> Dialect:
    """A question and its answer under two keys; `history` holds the pairs before them."""

    def turns(raw: dict[str, Any], name: str) -> list[Turn]:
        turns = _pairs([*_history(raw, name), (raw[question], raw[answer])], name)
        if "input" in more and raw.get("input", "") != "":  # what Alpaca's instruction is about
            about = _text(raw["input"], name)
            turns[-2]["content"] = f"{raw[question]}\n{about}" if raw[question] else about
        return turns

    return Dialect((question, answer), more, turns, in_front=True)


def _history(raw: dict[str, Any], name: str) -> list[Any]:
    """Pairs of a question and its answer."""
    history = as_list(raw.get("history", []), "history", name)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f"{name}: 'history' must be a list of pairs, got {brief(history)}")
    return history


def _pairs(pairs: list[Any], name: str) -> list[Turn]:
    """Questions and answers, all of them texts, as turns."""
    return [
        {"role": role, "content": _text(text, name)}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name}: a question and its answer must be texts, got {brief(value)}")
    return value


def _completion(raw: dict[str, Any], name: str) -> list[Any]:
    """TRL's: both are texts or lists of turns, and loss is on the completion alone."""
    prompt, completion = raw["prompt"], raw["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _pairs([(prompt, completion)], name)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise DataError(f"{name}: 'prompt' and 'completion' must be two texts or two lists of turns")
    silent = [
        {**turn, "train": False} if isinstance(turn, dict) and turn.get("role") == "assistant" else turn
        for turn in prompt
    ]
    return [*silent, *completion]


def _texts(raw: dict[str, Any], name: str) -> list[Turn]:
    """The Cauldron's and FineVision's: a list of `{"user", "assistant"}`."""
    pairs = as_list(raw["texts"], "texts", name)
    if not all(isinstance(pair, dict) and {"user", "assistant"} <= pair.keys() <= CAULDRON for pair in pairs):
        raise DataError(f"{name}: 'texts' must be a list of objects with 'user' and 'assistant', got {brief(pairs)}")
    return _pairs([(pair["user"], pair["assistant"]) for pair in pairs], name)


CAULDRON = {"user", "assistant", "source"}
DIALECTS = (
    _list_of_turns("messages"),  # OpenAI, Hugging Face, TRL, LLaMA-Factory, ms-swift
    _list_of_turns("conversations"),  # LLaVA, ShareGPT
    _list_of_turns("conversation"),
    Dialect(("prompt", "completion"), (), _completion, in_front=True),  # TRL
    _question("instruction", "output", "input", "history"),  # Alpaca
    _question("query", "response", "history"),  # ms-swift
    _question("prompt", "response", "history"),  # LLaMA-Factory
    _question("question", "answer"),
    Dialect(("texts",), (), _texts, in_front=True),  # The Cauldron, FineVision
)


def dialect_of(raw: dict[str, Any], name: str) -> Dialect:
    """The dialect that a record is written in.

    Raises:
        DataError: It is written in none of them, or in several.
    """
    found = [one for one in DIALECTS if all(key in raw for key in one.needs)]
    if not found:
        known = " or ".join("+".join(map(repr, one.needs)) for one in DIALECTS)
        raise DataError(f"{name}: a record needs {known}, got {brief(raw)}")
    if len(found) > 1:
        first, second = ("+".join(map(repr, one.needs)) for one in found[:2])
        raise DataError(f"{name}: has both {first} and {second}; keep one of them")
    return found[0]


def as_list(value: Any, key: str, name: str) -> list[Any]:
    """A list, or the JSON text of one.

    Raises:
        DataError: It is neither.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, key, name)
    if not isinstance(value, list):
        raise DataError(f"{name}: {key!r} must be a list, got {brief(value)}")
    return value


def parse_json(text: str, key: str, name: str) -> Any:
    """The value of a JSON text that stands under a key.

    Raises:
        DataError: It is broken.
    """
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: {key!r} is broken JSON ({error}); mend it", "broken line") from error


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is there twice, the first value would be lost.

    Raises:
        ValueError: There is one.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in an object")
    return found


def either(raw: dict[str, Any], keys: tuple[str, ...], name: str) -> Any:
    """What stands under one of several keys, or None.

    Raises:
        DataError: Several of them are there.
    """
    found = [key for key in keys if key in raw]
    if len(found) > 1:
        raise DataError(f"{name}: has both {found[0]!r} and {found[1]!r}; keep one of them")
    return raw[found[0]] if found else None
