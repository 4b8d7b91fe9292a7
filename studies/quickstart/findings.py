"""The findings of a quickstart run: one HTML page that needs no other file, and the same numbers as a console table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from diffusionvl.commands.command_line import table
from diffusionvl.drawing.charts import LabelledLine, chart_style, label_lines, to_svg
from diffusionvl.drawing.film import data_url
from diffusionvl.drawing.page import render
from diffusionvl.modeling.errors import UserError
from studies.quickstart.contest import Result

SERIES = {"AR": "#8b8f98", "static": "#2a7fd4", "dynamic": "#e07b00", "lossless": "#1f9d55"}
COLUMNS = (
    "decoding",
    "short accuracy",
    "long exact match",
    "same text as AR (long)",
    "forwards per token (long)",
    "tokens/s, batch 1",
    "tokens/s, batched",
)


@dataclass(frozen=True)
class DecodingRow:
    """One way of decoding in the table.

    Attributes:
        short: Result on the official short questions.
        long: Result on the long questions.
        speed: Tokens a second at batch size 1.
    """

    short: Result
    long: Result
    speed: float


@dataclass(frozen=True)
class Example:
    """One question with the answers of the AR base and of its translation.

    Attributes:
        image: The picture.
        question: The question about it.
        official: The right answer.
        base: The AR base's answer.
        translated: The translated model's answer.
    """

    image: Image.Image
    question: str
    official: str
    base: str
    translated: str


@dataclass(frozen=True)
class Findings:
    """All that the page shows.

    Attributes:
        base: Name of the AR base.
        block_size: Block size D of the translated model.
        steps: Number of finetuning steps.
        seconds: Time that finetuning took.
        machine: Date, hardware, threads and versions of the comparison.
        rows: The AR base first, then the translated model's ways of decoding, and the base with drafts.
        log: Lines of `log.jsonl`; those without a loss are left out.
        sweep: Confidence thresholds of dynamic remasking, each with its result on long questions.
        examples: Questions with both answers.
        film: A film from `film_html`.
    """

    base: str
    block_size: int
    steps: int
    seconds: float
    machine: dict[str, str]
    rows: Sequence[DecodingRow]
    log: Sequence[dict[str, Any]]
    sweep: Sequence[tuple[float, Result]]
    examples: Sequence[Example]
    film: str


def format_table(rows: Sequence[DecodingRow]) -> str:
    """Writes the table for the console, with speeds also as multiples of the AR base's, which stands first."""
    return table(COLUMNS, table_cells(rows))


def table_cells(rows: Sequence[DecodingRow]) -> list[list[str]]:
    """Writes the numbers as text, a list of cells for each row."""
    base = rows[0]
    return [
        [
            row.short.name,
            f"{row.short.accuracy:.2%}",
            f"{row.long.accuracy:.2%}",
            f"{row.long.share_equal(base.long):.2%}",
            f"{row.long.cost.forwards_per_token:.3f}",
            _speed(row.speed, base.speed),
            _speed(row.long.cost.tokens_per_second, base.long.cost.tokens_per_second),
        ]
        for row in rows
    ]


def _speed(tokens_per_second: float, base: float) -> str:
    return f"{tokens_per_second:,.0f} ({tokens_per_second / base:.2f}x)"


def write_findings(path: str | Path, found: Findings) -> None:
    """Writes the page.

    Args:
        path: The `.html` file.
        found: What it shows.

    Raises:
        UserError: There is nothing to show: no rows, no logged loss or no sweep.
    """
    for name, present in (
        ("rows", found.rows),
        ("log lines with a loss", _losses(found.log)),
        ("sweep", found.sweep),
    ):
        if not present:
            raise UserError(f"the page has no {name}; train and evaluate before you write it")
    page = render(
        Path(__file__).with_name("findings.html.jinja"),
        found=found,
        columns=COLUMNS,
        cells=table_cells(found.rows),
        loss_chart=Markup(loss_chart(found.log)),
        sweep_chart=Markup(sweep_chart(found.rows, found.sweep)),
        film=Markup(found.film),
        data_url=data_url,
    )
    Path(path).write_text(page, encoding="utf-8")


def _losses(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of a log that report a training step."""
    return [line for line in log if "loss" in line and "step" in line]


def loss_chart(log: Sequence[dict[str, Any]]) -> str:
    """Draws the training loss over the steps, with the accuracy on masked tokens below it, as SVG."""
    lines = _losses(log)
    steps = [line["step"] for line in lines]
    with mpl.rc_context(chart_style()):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(steps, [line["loss"] for line in lines], color=SERIES["static"])
        upper.set(ylabel="loss (nats/token, log)", yscale="log")
        upper.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        upper.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        known = [line for line in lines if "masked_accuracy" in line]
        accuracy = [100 * line["masked_accuracy"] for line in known]
        lower.plot([line["step"] for line in known], accuracy, color=SERIES["dynamic"])
        lower.set(xlabel="optimizer step", ylabel="masked tokens right (%)", ylim=(0, 102))
        return to_svg(figure, "Training loss and accuracy on masked tokens over optimizer steps")


def sweep_chart(rows: Sequence[DecodingRow], sweep: Sequence[tuple[float, Result]]) -> str:
    """Draws exact match on long questions against forwards per token, over confidence thresholds, as SVG."""
    with mpl.rc_context(chart_style()):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(100 * rows[0].long.accuracy, color=SERIES["AR"], linewidth=1, linestyle="--")
        singles = [row.long for row in rows if row.long.name != "dynamic"]  # dynamic is a point of the sweep
        others = [(result.cost.forwards_per_token, 100 * result.accuracy) for result in singles]
        for result, point, marker in zip(singles, others, "sDv^<>"[: len(singles)], strict=True):
            color = SERIES.get(result.name, SERIES["static"])
            axes.plot(*point, marker, color=color, markersize=8, label=result.name, linestyle="none")
        places = [(result.cost.forwards_per_token, 100 * result.accuracy) for _, result in sweep]
        axes.plot(*zip(*places, strict=True), "o-", color=SERIES["dynamic"], label="dynamic, by threshold")
        axes.set(xlabel="forwards per token (fewer is faster)", ylabel="exact match on long questions (%)")
        axes.set_xlim(left=0)
        axes.margins(y=0.18)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        label_lines(figure, axes, [LabelledLine(places, [f"{threshold:g}" for threshold, _ in sweep])], others)
        return to_svg(figure, "Exact match on long questions against forwards per token")
