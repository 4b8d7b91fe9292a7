"""The decoding settings: one table of names, defaults, ranges and meanings.

`generate`, the commands, the lmms-eval plugin and the docs read it. It imports neither torch nor transformers, so that
a command can print its flags at once.
"""

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

DECODINGS = ["denoise", "autoregressive", "speculative"]
POLICIES = ["low_confidence_static", "low_confidence_dynamic", "entropy_bounded"]


class Range(NamedTuple):
    """The values that a setting may have.

    Attributes:
        kind: What makes one value of a word of a command line; for most a type.
        allowed: The range in words.
        fits: Whether a value lies in it.
    """

    kind: Callable[[str], Any]
    allowed: str
    fits: Callable[[Any], bool]


class Setting(NamedTuple):
    """One row of the table.

    Attributes:
        default: Value where nothing is given.
        range: Values that it may have.
        group: What it is about: `length`, `decoding`, `denoising`, `sampling`, `constraint`, `end` or `output`.
        meaning: What it does, in one sentence.
    """

    default: Any
    range: Range
    group: str
    meaning: str


def _whole(least: int) -> Range:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return Range(int, f"an integer of at least {least}", fits)


def _number(allowed: str, holds: Callable[[float], bool]) -> Range:
    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and holds(value)

    return Range(float, allowed, fits)


def _or_none(inner: Range, meaning: str = "") -> Range:
    allowed = f"{inner.allowed}, or None{meaning}"
    return Range(inner.kind, allowed, lambda value: value is None or inner.fits(value))


def _or_several(inner: Range) -> Range:
    def fits(value: Any) -> bool:
        return all(map(inner.fits, value)) if isinstance(value, list) else inner.fits(value)

    return Range(inner.kind, f"{inner.allowed}, a list of them", fits)


def split_choices(text: str) -> Any:
    """Texts with commas between them, or a JSON list of texts, which may hold commas; what is neither stays as it is.

    >>> split_choices("a, b"), split_choices('["a, b"]')
    (['a', 'b'], ['a, b'])
    """
    if not text.startswith("["):
        return [choice.strip() for choice in text.split(",")]
    try:
        return json.loads(text)
    except ValueError:
        return text


def size_or_auto(text: str) -> int | str:
    """A number, or `auto`."""
    return text if text == "auto" else int(text)


def _are_choices(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_TEXT.fits, value))


def _is_policy(value: Any) -> bool:
    from .remasking import REMASKING

    return isinstance(value, str) and value in REMASKING


_SWITCH = Range(bool, "True or False", lambda value: isinstance(value, bool))
_TOKEN = Range(int, "a token id", _whole(0).fits)
_TEXT = Range(str, "a text that is not empty", lambda value: isinstance(value, str) and value != "")
_POLICY = Range(str, f"one of {POLICIES}, or another of `REMASKING`", _is_policy)
_POSITIVE = _number("a finite number above 0", lambda value: value > 0)
_AT_LEAST_0 = _number("a finite number of at least 0", lambda value: value >= 0)
_ONE_BEAM = Range(int, "1, since a block of tokens is written at once and has no beams", lambda value: value == 1)
_DRAFTS = Range(
    size_or_auto,
    "'auto' or an integer of at least 1",
    lambda value: value == "auto" or _whole(1).fits(value),
)
_BLOCK = " for the block size"
_SCHEMA = Range(
    str,
    "a JSON schema, as an object or its text",
    lambda value: _TEXT.fits(value) or (isinstance(value, dict) and all(isinstance(name, str) for name in value)),
)
_CHOICES = Range(split_choices, "a list of texts that are not empty", _are_choices)

SETTINGS = {
    "max_new_tokens": Setting(256, _whole(1), "length", "Number of tokens of the longest answer."),
    "max_length": Setting(None, _or_none(_whole(1)), "length", "The same with the padded prompt counted."),
    "min_new_tokens": Setting(0, _whole(0), "length", "Number of tokens before which no end of sequence is written."),
    "decoding": Setting(
        None,
        _or_none(
            Range(str, f"one of {list(DECODINGS)}", lambda value: value in DECODINGS), " for the checkpoint's own"
        ),
        "decoding",
        "Denoise blocks, or write token by token by the clean stream, alone or verifying what masks draft.",
    ),
    "block_size": Setting(
        None,
        _or_none(_whole(1), " for the checkpoint's D"),
        "decoding",
        "Tokens of a block, at most the checkpoint's; for models that were trained with `random_block_size`.",
    ),
    "draft_size": Setting(
        "auto", _DRAFTS, "decoding", "Number of masks that draft in speculative decoding, up to D, or what pays."
    ),
    "verify_margin": Setting(
        0.0, _AT_LEAST_0, "decoding", "Lead of a choice below which it is made again by a forward of one token."
    ),
    "denoising_steps": Setting(
        None, _or_none(_whole(1), _BLOCK), "denoising", "Steps that a block of D tokens is denoised in, 1 to D."
    ),
    "remasking": Setting(
        "low_confidence_static", _POLICY, "denoising", "Policy that decides which tokens a step keeps."
    ),
    "confidence_threshold": Setting(
        0.85,
        _number("a number in [0, 1]", lambda value: 0 <= value <= 1),
        "denoising",
        "Probability above which dynamic remasking keeps a token.",
    ),
    "entropy_bound": Setting(0.1, _AT_LEAST_0, "denoising", "Nats that entropy-bounded remasking spends in a step."),
    "tempered_confidence": Setting(
        False,
        _SWITCH,
        "denoising",
        "Judge drawn tokens by the distribution they are drawn from, as the reference does, not by the model's own.",
    ),
    "sub_block_size": Setting(
        None,
        _or_none(Range(int, "an integer of at least 1 that divides the block size", _whole(1).fits), _BLOCK),
        "denoising",
        "Tokens of a block that are denoised together; approximate where smaller than the block.",
    ),
    "fused_commit": Setting(
        True,
        _SWITCH,
        "denoising",
        "Write a finished block's clean keys and values in the forward of the next block's first step.",
    ),
    "do_sample": Setting(
        None,
        _or_none(_SWITCH, " to go by the temperature"),
        "sampling",
        "Draw tokens (at temperature 1 unless one is given), or take the most probable ones.",
    ),
    "temperature": Setting(0.0, _AT_LEAST_0, "sampling", "Temperature of the draws; 0 takes the most probable token."),
    "top_k": Setting(0, _whole(0), "sampling", "Draw among the k most probable tokens; 0 for all."),
    "top_p": Setting(
        1.0,
        _number("a number in (0, 1]", lambda value: 0 < value <= 1),
        "sampling",
        "Draw among the fewest tokens that reach this probability; 1 for all.",
    ),
    "repetition_penalty": Setting(
        1.0, _POSITIVE, "sampling", "Divide the scores of tokens that the row already holds by this; 1 changes nothing."
    ),
    "num_return_sequences": Setting(1, _whole(1), "sampling", "Answers to each prompt."),
    "num_beams": Setting(1, _ONE_BEAM, "sampling", "Known to transformers; only 1 is possible."),
    "json_schema": Setting(None, _or_none(_SCHEMA), "constraint", "JSON schema that the answer follows."),
    "json_object": Setting(False, _SWITCH, "constraint", "Answer with a JSON object of any form."),
    "regex": Setting(None, _or_none(_TEXT), "constraint", "Regular expression that the whole answer matches."),
    "grammar": Setting(None, _or_none(_TEXT), "constraint", "Grammar that the answer follows, as Lark writes it."),
    "choices": Setting(None, _or_none(_CHOICES), "constraint", "Texts of which the answer is one."),
    "stop_strings": Setting(None, _or_none(_or_several(_TEXT)), "end", "Text or texts that end an answer."),
    "max_time": Setting(
        None,
        _or_none(_number("a finite number of seconds of at least 0", lambda value: value >= 0)),
        "end",
        "Seconds after which an answer ends with the blocks that it has.",
    ),
    "eos_token_id": Setting(None, _or_none(_or_several(_TOKEN)), "end", "Token id or ids that end an answer."),
    "pad_token_id": Setting(
        None,
        _or_none(_TOKEN, " for the first id that ends an answer"),
        "end",
        "Token id that fills a row after the end of its answer.",
    ),
    "bos_token_id": Setting(None, _or_none(_TOKEN), "end", "Known to transformers; not used."),
    "use_cache": Setting(True, _SWITCH, "output", "Keep keys and values; without them every step runs the whole row."),
    "return_dict_in_generate": Setting(
        False, _SWITCH, "output", "Return a `DiffusionVLGenerationOutput` instead of the sequences alone."
    ),
    "top_logprobs": Setting(
        None,
        _or_none(_whole(0), " for no log-probabilities"),
        "output",
        "Number of tokens whose log-probabilities are kept beside that of each token of the answer.",
    ),
    "output_history": Setting(False, _SWITCH, "output", "Keep every step in the output, for a film."),
}
