"""`python -m diffusionvl.reproduction.charts RUN --out DIR`: tables (Markdown) and charts (PNG) of a measured run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _speed(one: Measurement) -> str:
    return "-" if one.tokens_per_second is None else f"{one.tokens_per_second:.1f}"


def tables(found: Sequence[Measurement]) -> str:
    """All tables of a run, in Markdown."""

    def row(title: str, decoding: str, model: str, threshold: float | None) -> list[str]:
        wanted = {"model": model, "decoding": decoding, "threshold": threshold}
        short, long = (select(found, kind=kind, **wanted) for kind in ("short", "long"))
        return [title, _percent(short.exact_match), *columns(long)]

    def columns(one: Measurement) -> list[str]:
        return [_percent(one.exact_match), _percent(one.token_f1), f"{one.forwards_per_token:.3f}", _speed(one)]

    header = ["", "short answers", "long answers", "long answers, token F1", "forwards/token", "tokens/s"]
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
            ["threshold", *header[2:]], [[str(one.threshold), *columns(one)] for one in sweep]
        ),
        "Text alone": table(
            ["", "answers equal to the base's", "token F1 with the base's", "forwards/token", "tokens/s"],
            [[one.decoding, *columns(one)] for one in (base, *text)],
        ),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def draw_charts(found: Sequence[Measurement], out: Path) -> None:
    """`speed_quality.png`, `block_size.png` and `threshold.png`."""
    long = [one for one in found if one.kind == "long"]
    ar = select(long, model="ar")

    figure, axes = _chart("Threshold of dynamic remasking", "forwards per token")
    sweep = [one for one in long if one.model == "translation" and one.decoding == "dynamic"]
    axes.plot([one.forwards_per_token for one in sweep], [100 * one.exact_match for one in sweep], "o-")
    for one in sweep:
        _label(axes, str(one.threshold), one.forwards_per_token, one)
    _ar_line(axes, ar, "AR baseline, 1 forward/token")
    figure.savefig(out / "threshold.png", dpi=150)

    figure, axes = _chart("Block size", "block size D (denoising steps = D)")
    sizes = [select(long, model=f"block_{size}", decoding="static") for size in BLOCK_SIZES]
    axes.bar([str(size) for size in BLOCK_SIZES], [100 * one.exact_match for one in sizes])
    _ar_line(axes, ar, "AR baseline")
    figure.savefig(out / "block_size.png", dpi=150)

    figure, axes = _chart("Speed and quality", "tokens/s at batch size 1")
    for one in long:
        if one.tokens_per_second is not None:
            axes.scatter(one.tokens_per_second, 100 * one.exact_match)
            parts = (one.model, "" if one is ar else one.decoding, "" if one.threshold is None else one.threshold)
            _label(axes, " ".join(str(part) for part in parts if part), one.tokens_per_second, one)
    figure.savefig(out / "speed_quality.png", dpi=150)


def _chart(title: str, across: str) -> tuple[Figure, Axes]:
    """An empty chart of the exact match of long answers over something."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=across, ylabel="exact match, long answers (%)")
    return figure, axes


def _label(axes: Axes, text: str, across: float, one: Measurement) -> None:
    """Names the point of a measurement."""
    axes.annotate(text, (across, 100 * one.exact_match), (4, 4), textcoords="offset points", fontsize=8)


def _ar_line(axes: Axes, ar: Measurement, text: str) -> None:
    """A dashed line at the AR baseline's exact match."""
    axes.axhline(100 * ar.exact_match, color="black", linestyle="--", label=text)
    axes.legend()


def main(argv: list[str] | None = None) -> int:
    """Writes `tables.md` and the charts.

    Returns:
        0, or 2 for an input that can not be used.
    """
    parser = Parser(prog="python -m diffusionvl.reproduction.charts", description="Draw a measured run.")
    parser.add_argument("run", type=Path, help="folder that diffusionvl.reproduction.measure wrote results.json into")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables.md and the charts")
    arguments = parser.parse_args(argv)
    try:
        found = read_results(arguments.run)
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = tables(found)
        (arguments.out / "tables.md").write_text(text + "\n", encoding="utf-8")
        draw_charts(found, arguments.out)
    except (OSError, ValueError) as error:
        return fail(parser.prog, error)
    print(f"{text}\n\nwrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
