"""`python -m diffusionvl.reproduction.charts RUN --out DIR`: the tables (Markdown) and charts (PNG) of a measured run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusionvl.command_line import Parser, fail
from diffusionvl.reproduction.measure import BLOCK_SIZE, BLOCK_SIZES, THRESHOLD, Measurement


def read_results(run: Path) -> list[Measurement]:
    """What `diffusionvl.reproduction.measure` wrote.

    Raises:
        ValueError: There is none, or it is broken.
    """
    path = run / "results.json"
    try:
        return [Measurement(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} can not be read ({error}); run diffusionvl.reproduction.measure first") from error


def select(found: Sequence[Measurement], **wanted: Any) -> Measurement:
    """The one measurement with these fields.

    Raises:
        ValueError: The run lacks it.
    """
    for one in found:
        if all(getattr(one, name) == value for name, value in wanted.items()):
            return one
    raise ValueError(f"results.json holds no measurement of {wanted}; run diffusionvl.reproduction.measure again")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(one: Measurement) -> str:
    return f"{100 * one.exact_match:.1f} %"


def _speed(one: Measurement) -> str:
    return "-" if one.tokens_per_second is None else f"{one.tokens_per_second:.1f}"


def tables(found: Sequence[Measurement]) -> str:
    """All tables of a run, in Markdown."""

    def row(title: str, decoding: str, model: str, threshold: float | None) -> list[str]:
        wanted = {"model": model, "decoding": decoding, "threshold": threshold}
        short, long = (select(found, kind=kind, **wanted) for kind in ("short", "long"))
        return [title, _percent(short), _percent(long), f"{long.forwards_per_token:.3f}", _speed(long)]

    header = ["", "short answers", "long answers", "forwards/token", "tokens/s"]
    sweep = [one for one in found if one.model == "translation" and one.kind == "long" and one.decoding == "dynamic"]
    text = [one for one in found if one.kind == "text" and one.model == "text"]
    base = select(found, kind="text", model="smollm2")
    parts = {
        "AR against translation": table(
            header,
            [
                row("AR baseline", "ar", "ar", None),
                row("translation, static", "static", "translation", None),
                row(f"translation, dynamic {THRESHOLD}", "dynamic", "translation", THRESHOLD),
            ],
        ),
        "Block size (table 5)": table(
            header, [row(f"D = {size}", "static", f"block_{size}", None) for size in BLOCK_SIZES]
        ),
        "Noise and blocks (table 6)": table(
            header,
            [
                row(f"block diffusion, D = {BLOCK_SIZE}", "dynamic", f"block_{BLOCK_SIZE}", THRESHOLD),
                row("sequence-level noise", "dynamic", "sequence", THRESHOLD),
                row("full diffusion, D = 64", "dynamic", "full", THRESHOLD),
            ],
        ),
        "Threshold (table 7)": table(
            ["threshold", "long answers", "forwards/token", "tokens/s"],
            [[str(one.threshold), _percent(one), f"{one.forwards_per_token:.3f}", _speed(one)] for one in sweep],
        ),
        "Text alone": table(
            ["", "answers equal to the base's", "forwards/token", "tokens/s"],
            [
                [f"{one.decoding}", _percent(one), f"{one.forwards_per_token:.3f}", _speed(one)]
                for one in (base, *text)
            ],
        ),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())
