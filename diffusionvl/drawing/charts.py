"""What charts of report pages share: their style, labels that keep out of the way, and SVG that follows the page."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stands for the page's text colour while matplotlib draws, so that charts follow dark mode.
TEXT_COLOR = "#010203"


def label_line(
    figure: Figure,
    axes: Axes,
    places: Sequence[tuple[float, float]],
    labels: Sequence[str],
    others: Sequence[tuple[float, float]],
    apart: tuple[float, float] = (24, 11),
) -> None:
    """Labels the points of a line on the side that the line leaves free; a label without room is left out.

    Args:
        figure: That holds the axes.
        axes: Where `places` are drawn already.
        places: Points of the line.
        labels: One a point.
        others: Points that do not belong to the line.
        apart: Points of print, across and up, that a label keeps from all else.
    """
    figure.draw_without_rendering()  # settles the limits
    printed = axes.transData.transform([*places, *others]) * 72 / figure.dpi
    taken = printed.copy()
    for index, label in enumerate(labels):
        ways = np.delete(printed[: len(places)], index, 0)[max(index - 1, 0) : index + 1] - printed[index]
        ways = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-6)
        away = -ways.sum(0)  # a bend leaves room on its outer side
        if np.linalg.norm(away) < 0.3:  # straight on: above the line, or left of it where it is steep
            x, y = ways[-1] if ways.any() else (1.0, 0.0)
            away = np.array([-y, x]) * (1 if x > 0 else -1)
        offset = away / np.linalg.norm(away) * (19, 11)
        if (np.abs(np.delete(taken, index, 0) - printed[index] - offset) > apart).any(1).all():
            axes.annotate(
                label, places[index], offset, textcoords="offset points", ha="center", va="center", fontsize=9
            )
            taken = np.concatenate([taken, [printed[index] + offset]])


def chart_style() -> dict[str, Any]:
    """Charts without a frame, in the page's colour of text."""
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
    """A figure as an SVG element to stand in a page, in the page's colour of text and without addresses."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :]).replace(TEXT_COLOR, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
