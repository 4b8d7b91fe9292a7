"""`python -m studies.smollm2.figures RUN --out DIR`: writes tables (Markdown) and charts (PNG) of a measured run."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusionvl.commands.command_line import Parser, markdown
from diffusionvl.modeling.errors import UserError
from studies.smollm2.measure import BLOCK_SIZE, BLOCK_SIZES, THRESHOLD, THRESHOLDS, Measurement


def read_results(run: Path) -> list[Measurement]:
    """Reads what `studies.smollm2.measure` wrote.

    Raises:
        UserError: There is none, or it is broken.
    """
    path = run / "results.json"
    try:
        return [Measurement(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run studies.smollm2.measure first") from error


def select(found: Sequence[Measurement], **wanted: Any) -> Measurement:
    """Returns the one measurement with these fields.

    Raises:
        UserError: The run lacks it.
    """
    for one in found:
        if all(getattr(one, name) == value for name, value in wanted.items()):
            return one
    raise UserError(f"results.json holds no measurement of {wanted}; run studies.smollm2.measure again")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _speed(one: Measurement) -> str:
    return "-" if one.tokens_per_second is None else f"{one.tokens_per_second:.1f}"


def tables(found: Sequence[Measurement]) -> str:
    """Writes all tables of a run in Markdown."""

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
        "AR against translation": markdown(
            header,
            [
                row("AR baseline", "ar", "ar", None),
                row("translation, static", "static", "translation", None),
                row(f"translation, dynamic {THRESHOLD}", "dynamic", "translation", THRESHOLD),
            ],
        ),
        "Block size (table 5)": markdown(
            header, [row(f"D = {size}", "static", f"block_{size}", None) for size in BLOCK_SIZES]
        ),
        "Noise and blocks (table 6)": markdown(
            header,
            [
                row(f"block diffusion, D = {BLOCK_SIZE}", "dynamic", f"block_{BLOCK_SIZE}", THRESHOLD),
                row("sequence-level noise", "dynamic", "sequence", THRESHOLD),
                row("full diffusion, D = 64", "dynamic", "full", THRESHOLD),
            ],
        ),
        "Threshold (table 7)": markdown(
            ["threshold", *header[2:]], [[str(one.threshold), *columns(one)] for one in sweep]
        ),
        "Text alone": markdown(
            ["", "answers equal to the base's", "token F1 with the base's", "forwards/token", "tokens/s"],
            [[one.decoding, *columns(one)] for one in (base, *text)],
        ),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def draw_charts(found: Sequence[Measurement], out: Path) -> None:
    """Draws `threshold.png`, `block_size.png` and `speed_quality.png`, all of long answers."""
    long = [one for one in found if one.kind == "long"]
    ar = select(long, model="ar")
    for name, draw in (("threshold", _thresholds), ("block_size", _block_sizes), ("speed_quality", _speed_quality)):
        draw(long, ar).savefig(out / f"{name}.png", dpi=150)


def _thresholds(long: Sequence[Measurement], ar: Measurement) -> Figure:
    """Draws quality (above) and cost (below) over the threshold of dynamic remasking."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    quality, cost = figure.subplots(2, 1, sharex=True)
    sweep = [one for one in long if one.model == "translation" and one.decoding == "dynamic"]
    places = [str(one.threshold) for one in sweep]
    quality.plot(places, [100 * one.exact_match for one in sweep], "o-", label="translation")
    _ar_line(quality, 100 * ar.exact_match)
    quality.set(title="Threshold of dynamic remasking", ylabel="exact match (%)", ylim=_room(sweep, ar))
    cost.plot(places, [one.forwards_per_token for one in sweep], "o-")
    most = max(one.forwards_per_token for one in sweep)
    cost.set(ylabel="forwards per token", xlabel="threshold", ylim=(0, 1.2 * most))
    return figure


def _room(shown: Sequence[Measurement], ar: Measurement) -> tuple[float, float]:
    """Returns the ends of an axis of per cents, at least ten apart, so that one question does not look like a cliff."""
    lowest = 100 * min(one.exact_match for one in (*shown, ar))
    return max(0.0, min(90.0, lowest - 5)), 101.0


def _block_sizes(long: Sequence[Measurement], ar: Measurement) -> Figure:
    """Draws quality over the block size."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = [select(long, model=f"block_{size}", decoding="static") for size in BLOCK_SIZES]
    bars = axes.bar([str(size) for size in BLOCK_SIZES], [100 * one.exact_match for one in sizes])
    axes.bar_label(bars, fmt="{:.0f}", padding=2)
    _ar_line(axes, 100 * ar.exact_match)
    axes.set(title="Block size, a small budget", xlabel="block size D (denoising steps = D)", ylabel="exact match (%)")
    axes.set_ylim(0, 115)  # room for the legend
    return figure


def _speed_quality(long: Sequence[Measurement], ar: Measurement) -> Figure:
    """Draws quality over speed, with models of a small budget in grey."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    timed = [one for one in long if one.tokens_per_second is not None]
    sweep = sorted((one for one in timed if one.model == "translation"), key=lambda one: one.threshold or 1.0)
    axes.plot(*_points([ar]), "k*", markersize=12, label="AR baseline")
    axes.plot(
        *_points(sweep), "o-", label=f"translation, equal budget: threshold {THRESHOLDS[0]} to {THRESHOLDS[-1]}, static"
    )
    small = [one for one in timed if one not in sweep and one is not ar]
    axes.plot(*_points(small), "o", color="gray", label="translations of a small budget")
    for one in small:
        name = one.model.replace("block_", "D = ") + ("" if one.decoding == "static" else f", {one.decoding}")
        speed, quality = _points([one])
        side = 4 if quality[0] > 1 else -10  # names of points on the floor go below it, away from those just above
        axes.annotate(name, (speed[0], quality[0]), (6, side), textcoords="offset points", fontsize=8)
    axes.set(title="Speed and quality", xlabel="tokens/s at batch size 1", ylabel="exact match (%)")
    axes.set(ylim=(-8, 108), xlim=(0, None))
    axes.legend(loc="center right", fontsize=8)
    return figure


def _points(shown: Sequence[Measurement]) -> tuple[list[float], list[float]]:
    """Returns tokens per second and per cents."""
    return [one.tokens_per_second or 0.0 for one in shown], [100 * one.exact_match for one in shown]


def _ar_line(axes: Axes, quality: float) -> None:
    """Draws a dashed line at the AR baseline's quality."""
    axes.axhline(quality, color="black", linestyle="--", label="AR baseline")
    axes.legend()


def main(argv: list[str] | None = None) -> int:
    """Writes `tables.md` and the charts.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.smollm2.figures", description="Draw a measured run.")
    parser.add_argument("run", type=Path, help="folder that studies.smollm2.measure wrote results.json into")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables.md and the charts")
    return parser.run(_draw, argv)


def _draw(arguments: argparse.Namespace) -> None:
    """Reads the run, and writes and prints its tables."""
    found = read_results(arguments.run)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = tables(found)
    (arguments.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    draw_charts(found, arguments.out)
    print(f"{text}\n\nwrote {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
