"""How many tokens a forward writes, against the training that its drafts have had."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from diffusionvl.drawing.charts import chart_style, to_svg


def points(file: Path) -> list[tuple[int, float]]:
    """Training steps, and the tokens that a forward writes with the best size of drafts, of a file of `acceptance`."""
    found = json.loads(file.read_text(encoding="utf-8"))["steps"]
    best = {
        int(step): max(way["tokens"] / way["forwards"] for way in one["ways"] if not way["after_rejection"])
        for step, one in found.items()
    }
    return sorted(best.items())


def draw(files: Sequence[Path], out: Path) -> None:
    """Draws a line for each rank, over the runs and checkpoints of that rank, as SVG.

    Args:
        files: Files of `acceptance`, named rankR-stepsN.json.
        out: The chart.
    """
    lines: dict[int, list[tuple[int, float]]] = {}
    for file in files:
        rank = int(re.findall(r"\d+", file.stem)[0])
        lines.setdefault(rank, []).extend(points(file))
    with mpl.rc_context(chart_style()):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for rank, line in sorted(lines.items()):
            axes.plot(*zip(*sorted(line), strict=True), "o-", label=f"rank {rank}")
        axes.set(xlabel="optimizer steps", ylabel="tokens a forward")
        axes.legend()
        svg = to_svg(figure, "Tokens a forward over training steps")
    svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
    out.write_text(svg.replace("currentColor", "#6b7280") + "\n", encoding="utf-8")
