"""Draws the charts of the report: accuracy by task, and quality over speed with the AR model beside it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from diffusionvl.drawing.charts import LabelledLine, chart_style, label_lines, to_svg
from diffusionvl.evaluation import AR
from eval.curves import Curve, task_names
from eval.results import RunRecord

COLORS = ("#2a7fd4", "#e07b00", "#12784a", "#a3479f", "#b3261e", "#5b6abf")
AR_COLORS = ("#8b8f98", "#5a5e66", "#b9bdc6")


def colors_of(kinds: Sequence[str]) -> list[str]:
    """Gives each model or line a colour, greys to AR ones."""
    ours, ar = cycle(COLORS), cycle(AR_COLORS)
    return [next(ar if kind == AR else ours) for kind in kinds]


@dataclass(frozen=True)
class DrawnChart:
    """A drawn chart.

    Attributes:
        svg: The chart as an element of a page.
        png: Content of a PNG file.
    """

    svg: str
    png: bytes


def accuracy_chart(models: Sequence[str], runs: Sequence[RunRecord]) -> DrawnChart:
    """Draws bars of each task's main metric, that of its first run; scores that are not shares in per cent of the best.

    Args:
        models: Models in the order of the legend.
        runs: One run for each model and task.
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
    """Returns a share in per cent, another score in per cent of the best model's."""
    suite, name = task
    value = values[suite, name, model]
    everyone = [abs(values[suite, name, other]) for other in models if (suite, name, other) in values]
    return 100 * value / (1 if max(everyone) <= 1 else max(everyone))


def speed_chart(curves: Sequence[Curve]) -> DrawnChart:
    """Draws quality over forwards a token and over tokens a second, with a line for each model and remasking.

    Points are labelled by tokens a step or thresholds. The AR model is a mark with a dashed line at its quality.
    """
    scale = 100 if max(value for curve in curves for value in curve.quality) <= 1 else 1
    with mpl.rc_context(chart_style()):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name in zip(panels, ("forwards per token (fewer is faster)", "tokens a second"), strict=True):
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
        for axes, name in zip(panels, ("forwards", "speeds"), strict=True):
            points = {curve.name: list(zip(getattr(curve, name), curve.quality, strict=True)) for curve in curves}
            scaled = {name: [(x, scale * quality) for x, quality in own] for name, own in points.items()}
            lines = [LabelledLine(scaled[c.name], c.labels, color) for c, color in drawn if c.kind != AR]
            label_lines(figure, axes, lines, [place for c in curves if c.kind == AR for place in scaled[c.name]])
        return _drawn(figure, "Quality over forwards per token and over tokens a second")


def _drawn(figure: Figure, title: str) -> DrawnChart:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return DrawnChart(to_svg(figure, title), buffer.getvalue())


def save_png(chart: DrawnChart, path: Path) -> None:
    """Writes a chart's PNG."""
    path.write_bytes(chart.png)
