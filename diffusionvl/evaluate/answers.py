"""From generated text to the answer that is scored."""

from collections.abc import Sequence

POSTPROCESSING = ("none", "reference")


def finish(text: str, until: Sequence[str], postprocess: str) -> str:
    """Cuts and strips a decoded answer.

    Args:
        text: Without special tokens.
        until: Texts that end it.
        postprocess: `none`: cut in front of the first of `until` and stripped. `reference`: as the reference
            implementation does, see `reference_answer`.

    Raises:
        ValueError: `postprocess` is unknown.
    """
    if postprocess not in POSTPROCESSING:
        raise ValueError(f"postprocess must be one of {POSTPROCESSING}, got {postprocess!r}")
    return reference_answer(text, until) if postprocess == "reference" else cut(text, until).strip()


def cut(text: str, until: Sequence[str]) -> str:
    """The text in front of the first of `until` that it holds."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]


def reference_answer(text: str, until: Sequence[str] = ()) -> str:
    """What the reference's evaluation keeps: the first line, without one trailing period.

    It cuts a caption of several paragraphs after the first one.
    """
    return cut(text, ["\n", *until]).strip().removesuffix(".")
