"""The charts of the report: accuracy by task, and quality over speed with the AR model beside it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusionvl.drawing.charts import chart_style, to_svg
from diffusionvl.evaluation import AR
from eval.results import RunRecord

COLORS = ("#2a7fd4", "#e07b00", "#12784a", "#a3479f", "#b3261e", "#5b6abf")
AR_COLORS = ("#8b8f98", "#5a5e66", "#b9bdc6")


def colors_of(kinds: Sequence[str]) -> list[str]:
    """A colour for each model or line, greys for AR ones."""
    ours, ar = cycle(COLORS), cycle(AR_COLORS)
    return [next(ar if kind == AR else ours) for kind in kinds]


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        svg: To stand in a page.
        png: A file.
    """

    svg: str
    png: bytes


@dataclass(frozen=True)
class Curve:
    """Ways of decoding of one model, from many forwards a token to few.

    Attributes:
        name: For the legend.
        kind: `ar` or `block_diffusion`.
        metric: What quality is.
        labels: Of the points.
        speeds: Tokens a second inside `generate`.
        forwards: A token.
        quality: By the task's main metric.
    """

    name: str
    kind: str
    metric: str
    labels: list[str]
    speeds: list[float]
    forwards: list[float]
    quality: list[float]


def task_names(runs: Sequence[RunRecord]) -> dict[tuple[str, str], str]:
    """How a suite's task is called: by its own name, or with its suite where there are several."""
    several = len({run.suite for run in runs}) > 1
    return {(run.suite, run.task): f"{run.suite}: {run.task}" if several else run.task for run in runs}


def accuracy_chart(models: Sequence[str], runs: Sequence[RunRecord]) -> Chart:
    """Bars of each task's main metric, that of its first run, in per cent of the best model where it is no share.

    Args:
        models: In the order of the legend.
        runs: One for each model and task.
    """
    names = task_names(runs)
    tasks = [*names]
    main = {(run.suite, run.task): run.main_metric for run in reversed(runs)}
    values = {
        (run.suite, run.task, run.model): run.metrics[metric]
        for run in runs
        if (metric := main[run.suite, run.task]) in run.metrics
    }
    kinds = {run.model: run.kind for run in runs}
    with mpl.rc_context(chart_style()):
        figure = Figure(
            figsize=(max(5.2, 1.1 + 0.9 * len(tasks) * max(len(models), 2) ** 0.5), 3.6), layout="constrained"
        )
        axes = figure.subplots()
        run_by = {task: [model for model in models if (*task, model) in values] for task in tasks}
        width = 0.8 / max(len(own) for own in run_by.values())
        for model, color in zip(models, colors_of([kinds[model] for model in models]), strict=True):
            own = [(place, task, run_by[task]) for place, task in enumerate(tasks) if model in run_by[task]]
            places = [place + (there.index(model) - (len(there) - 1) / 2) * width for place, _, there in own]
            heights = [_percent(values, task, model, models) for _, task, _ in own]
            bars = axes.bar(places, heights, width * 0.92, label=model, color=color)
            axes.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=8)
        turned: dict[str, Any] = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if len(tasks) > 3 else {}
        axes.set_xticks(range(len(tasks)), [*names.values()], **turned)
        axes.set(ylabel="main metric (%)", ylim=(0, 112))
        axes.grid(False, axis="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return _drawn(figure, "Main metric of each task, by model")


def _percent(
    values: dict[tuple[str, str, str], float], task: tuple[str, str], model: str, models: Sequence[str]
) -> float:
    """A share as per cent; another score in per cent of the best model's."""
    suite, name = task
    value = values[suite, name, model]
    everyone = [abs(values[suite, name, other]) for other in models if (suite, name, other) in values]
    return 100 * value / (1 if max(everyone) <= 1 else max(everyone))


def speed_chart(curves: Sequence[Curve]) -> Chart:
    """Quality over forwards a token and over tokens a second: a line for each model and remasking.

    Points are labelled by tokens a step or thresholds. The AR model is a mark with a dashed line at its quality.
    """
    scale = 100 if max(value for curve in curves for value in curve.quality) <= 1 else 1
    with mpl.rc_context(chart_style()):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name in zip(
            panels, ("forwards per token (fewer is faster)", "tokens a second in generate()"), strict=True
        ):
            axes.set_xlabel(name)
            axes.margins(x=0.1, y=0.2)
        drawn = list(zip(curves, colors_of([curve.kind for curve in curves]), strict=True))
        for curve, color in drawn:
            quality = [scale * value for value in curve.quality]
            for axes, places in zip(panels, (curve.forwards, curve.speeds), strict=True):
                if curve.kind == AR:
                    axes.axhline(quality[0], color=color, linewidth=1, linestyle="--")
                axes.plot(places, quality, "s" if curve.kind == AR else "o-", color=color, label=curve.name)
        for axes in panels:
            axes.set_xlim(left=0)
        panels[0].set_ylabel(curves[0].metric + (" (%)" if scale == 100 else ""))
        if scale == 100:
            panels[0].set_ylim(top=min(panels[0].get_ylim()[1], 106))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figure.draw_without_rendering()  # settles the limits
        own = [(curve, color) for curve, color in drawn if curve.kind != AR]
        _label(panels[0], [(curve, curve.forwards, color) for curve, color in own], scale)
        _label(panels[1], [(curve, curve.speeds, color) for curve, color in own], scale)
        return _drawn(figure, "Quality over forwards per token and over tokens a second")


def _label(axes: Axes, lines: Sequence[tuple[Curve, list[float], str]], scale: int) -> None:
    """Labels the points of lines, above and below in turn; a label without room is left out."""
    taken: list[tuple[float, float]] = []
    for number, (curve, places, color) in enumerate(lines):
        above = 1 if number % 2 == 0 else -1
        for x, quality, label in zip(places, curve.quality, curve.labels, strict=True):
            across, up = axes.transData.transform((x, scale * quality))
            spot = (across, up + 12 * above)
            if all(abs(spot[0] - other[0]) > 30 or abs(spot[1] - other[1]) > 12 for other in taken):
                taken.append(spot)
                offset = (0, 9 * above)
                axes.annotate(
                    label,
                    (x, scale * quality),
                    offset,
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=color,
                )


def _drawn(figure: Figure, title: str) -> Chart:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return Chart(to_svg(figure, title), buffer.getvalue())


def save_png(chart: Chart, path: Path) -> None:
    """Writes a chart's PNG."""
    path.write_bytes(chart.png)
