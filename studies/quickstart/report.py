"""The report of a quickstart run: one HTML page that needs no other file, and the same numbers as a console table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from diffusionvl.commands.command_line import table
from diffusionvl.drawing.charts import chart_style, label_line, to_svg
from diffusionvl.drawing.film import data_url
from diffusionvl.drawing.page import render
from diffusionvl.modeling.errors import UserError
from studies.quickstart.contest import Result

SERIES = {"AR": "#8b8f98", "static": "#2a7fd4", "dynamic": "#e07b00"}
COLUMNS = (
    "decoding",
    "short accuracy",
    "long exact match",
    "forwards per token (long)",
    "tokens/s, batch 1",
    "tokens/s, batched",
)


@dataclass(frozen=True)
class Row:
    """One way of decoding.

    Attributes:
        short: Its result on the official short questions.
        long: Its result on the long questions.
        speed: Tokens a second at batch size 1.
    """

    short: Result
    long: Result
    speed: float


@dataclass(frozen=True)
class Sample:
    """One question that was answered by the AR base and by its translation.

    Attributes:
        image: The picture.
        question: About it.
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
class Report:
    """All that the page shows.

    Attributes:
        base: Name of the AR base.
        block_size: D of the translated model.
        steps: Of finetuning.
        seconds: That finetuning took.
        rows: AR base first, then the translated model's ways of decoding.
        log: Lines of `log.jsonl`; those without a loss are left out.
        sweep: Confidence threshold of dynamic remasking, and the result with it on long questions.
        samples: Questions with both answers.
        film: A film from `film_html`.
    """

    base: str
    block_size: int
    steps: int
    seconds: float
    rows: Sequence[Row]
    log: Sequence[dict[str, Any]]
    sweep: Sequence[tuple[float, Result]]
    samples: Sequence[Sample]
    film: str


def format_table(rows: Sequence[Row]) -> str:
    """The table for the console; the AR base stands first, and speeds are told as multiples of its."""
    return table(COLUMNS, table_cells(rows))


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The numbers as text, a list of cells a row."""
    base = rows[0]
    return [
        [
            row.short.name,
            f"{row.short.accuracy:.2%}",
            f"{row.long.accuracy:.2%}",
            f"{row.long.forwards_per_token:.3f}",
            _speed(row.speed, base.speed),
            _speed(row.long.tokens_per_second, base.long.tokens_per_second),
        ]
        for row in rows
    ]


def _speed(tokens_per_second: float, base: float) -> str:
    return f"{tokens_per_second:,.0f} ({tokens_per_second / base:.2f}x)"


def write_report(path: str | Path, report: Report) -> None:
    """Writes the page.

    Args:
        path: `.html` file.
        report: What it shows.

    Raises:
        UserError: There is nothing to show: no rows, no logged loss or no sweep.
    """
    for name, present in (
        ("rows", report.rows),
        ("log lines with a loss", _losses(report.log)),
        ("sweep", report.sweep),
    ):
        if not present:
            raise UserError(f"the report has no {name}; evaluate and train before you write it")
    page = render(
        Path(__file__).with_name("report.html.jinja"),
        report=report,
        columns=COLUMNS,
        cells=table_cells(report.rows),
        loss_chart=Markup(loss_chart(report.log)),
        sweep_chart=Markup(sweep_chart(report.rows, report.sweep)),
        film=Markup(report.film),
        data_url=data_url,
    )
    Path(path).write_text(page, encoding="utf-8")


def _losses(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log that tell of a training step."""
    return [line for line in log if "loss" in line and "step" in line]


def loss_chart(log: Sequence[dict[str, Any]]) -> str:
    """Training loss, and accuracy on masked tokens below it, over the steps; as SVG."""
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


def sweep_chart(rows: Sequence[Row], sweep: Sequence[tuple[float, Result]]) -> str:
    """Exact match on long questions against forwards per token, over confidence thresholds; as SVG."""
    with mpl.rc_context(chart_style()):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(100 * rows[0].long.accuracy, color=SERIES["AR"], linewidth=1, linestyle="--")
        singles = [row.long for row in rows if row.long.name != "dynamic"]  # dynamic is a point of the sweep
        others = [(result.forwards_per_token, 100 * result.accuracy) for result in singles]
        for result, point, marker in zip(singles, others, "sDv^<>"[: len(singles)], strict=True):
            color = SERIES.get(result.name, SERIES["static"])
            axes.plot(*point, marker, color=color, markersize=8, label=result.name, linestyle="none")
        places = [(result.forwards_per_token, 100 * result.accuracy) for _, result in sweep]
        axes.plot(*zip(*places, strict=True), "o-", color=SERIES["dynamic"], label="dynamic, by threshold")
        axes.set(xlabel="forwards per token (fewer is faster)", ylabel="exact match on long questions (%)")
        axes.set_xlim(left=0)
        axes.margins(y=0.18)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        label_line(figure, axes, places, [f"{threshold:g}" for threshold, _ in sweep], others)
        return to_svg(figure, "Exact match on long questions against forwards per token")
