"""What the charts of report pages share: a style, labels that keep out of the way, and SVG that follows the page."""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stands for the page's text colour while matplotlib draws, so that charts follow dark mode.
TEXT_COLOR = "#010203"


class LabelledLine(NamedTuple):
    """A line of a chart whose points are labelled.

    Attributes:
        places: Points of the line, which is drawn already.
        labels: The label of each point.
        color: Colour of the labels; the page's colour of text if left out.
    """

    places: Sequence[tuple[float, float]]
    labels: Sequence[str]
    color: str | None = None


def label_lines(
    figure: Figure,
    axes: Axes,
    lines: Sequence[LabelledLine],
    others: Sequence[tuple[float, float]] = (),
    apart: tuple[float, float] = (24, 11),
) -> None:
    """Labels the points of lines on the sides that the lines leave free; a label without room is left out.

    Args:
        figure: The figure that holds the axes.
        axes: The axes in which everything is drawn already.
        lines: The lines.
        others: Points that belong to none of the lines.
        apart: Distance in points of print, across and up, that a label keeps from everything else.
    """
    figure.draw_without_rendering()  # settles the limits
    everything = [*(place for line in lines for place in line.places), *others]
    taken = axes.transData.transform(everything) * 72 / figure.dpi
    for line in lines:
        printed = axes.transData.transform(line.places) * 72 / figure.dpi
        for index, label in enumerate(line.labels):
            offset = _free_side(printed, index)
            own = (taken == printed[index]).all(1)
            if (np.abs(taken[~own] - printed[index] - offset) > apart).any(1).all():
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": line.color}
                axes.annotate(label, line.places[index], tuple(offset), textcoords="offset points", **style)
                taken = np.concatenate([taken, [printed[index] + offset]])


def _free_side(printed: np.ndarray, index: int) -> np.ndarray:
    """Returns where the label of a point goes, as an offset from it: to the side that the line leaves free."""
    ways = np.delete(printed, index, 0)[max(index - 1, 0) : index + 1] - printed[index]
    ways = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-6)
    away = -ways.sum(0)  # a bend leaves room on its outer side
    if np.linalg.norm(away) < 0.3:  # straight on: above the line, or left of it where it is steep
        x, y = ways[-1] if ways.any() else (1.0, 0.0)
        away = np.array([-y, x]) * (1 if x > 0 else -1)
    return away / np.linalg.norm(away) * (19, 11)


def chart_style() -> dict[str, Any]:
    """Returns the style of all charts: without a frame, in the page's colour of text."""
    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(colors, TEXT_COLOR),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#8b8f98",
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "svg.hashsalt": "diffusionvl",
    }


def to_svg(figure: Figure, title: str) -> str:
    """Writes a figure as an SVG element of a page, in the page's colour of text and without addresses."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :]).replace(TEXT_COLOR, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
