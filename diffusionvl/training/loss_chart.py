"""The chart of a run's losses, drawn beside its log."""

from pathlib import Path
from typing import Any


def draw_losses(log: list[dict[str, Any]], path: Path) -> None:
    """Draws the training and the evaluation loss over the steps of a run; without matplotlib, nothing is drawn.

    Args:
        log: `log_history` of a trainer's state.
        path: A PNG file.
    """
    try:
        from matplotlib.figure import Figure  # of the extra `train`
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(line["step"], line[name]) for line in log if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
