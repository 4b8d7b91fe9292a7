"""The measurements of `decode.py` as numbers, a table and a chart."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusionvl.commands.command_line import markdown
from diffusionvl.evaluation.costs import Cost

MODES = ("autoregressive", "speculative")  # of a model with causal clean tokens
HEADER = (
    *("task", "batch", "decoding", "tokens/s", "against AR", "against the reference", "forwards per token"),
    *("first tokens, ms", "in the layers", "peak, MiB", "quality"),
)


@dataclass
class Measured:
    """One contender on one task, summed over its batches.

    Attributes:
        task: Name of the task.
        contender: Name of the contender.
        batch: Number of prompts in a batch.
        quality: Verdict of the task's judge.
        cost: Tokens, forwards and seconds of all answers.
        decoder_seconds: Part of the seconds that was spent in the layers of the base's language model; the rest is its
            head, the choice of tokens, and the loop around them. None on a GPU, which is not waited for there.
        peak_mib: Most memory that the process had meanwhile; on a GPU, most that was allocated on it.
        ids: Ids of the answers.
    """

    task: str
    contender: str
    batch: int
    quality: float | None = None
    cost: Cost = field(default_factory=Cost)
    decoder_seconds: float | None = None
    peak_mib: float = 0.0
    ids: list[list[int]] = field(default_factory=list)


def as_line(one: Measured) -> str:
    """Writes a measurement as one line of text."""
    quality = "" if one.quality is None else f"  quality {one.quality:.3f}"
    return (
        f"{one.task:26s} {one.contender:21s} batch {one.batch:2d}  {one.cost.tokens_per_second:8.1f} tokens/s  "
        f"{one.cost.forwards_per_token:6.3f} forwards/token  first {1e3 * one.cost.seconds_to_first_block:8.1f} ms  "
        f"peak {one.peak_mib:6.0f} MiB{quality}"
    )


def summary(results: list[Measured]) -> list[dict[str, Any]]:
    """Returns the numbers, with the ratios to AR and to the reference with the same schedule."""
    rows = []
    for one in results:
        peers = {other.contender: other for other in results if (other.task, other.batch) == (one.task, one.batch)}
        schedule = "dynamic" if one.contender.endswith("dynamic") else "static"
        denoises = one.contender.startswith(("ours", "reference")) and not one.contender.endswith(MODES)
        reference = peers.get(f"reference, {schedule}") if denoises else None
        speed = one.cost.tokens_per_second
        row: dict[str, Any] = {"task": one.task, "contender": one.contender, "batch": one.batch, "quality": one.quality}
        row |= {"tokens": one.cost.tokens, "forwards": one.cost.forwards, "seconds": one.cost.seconds}
        row |= {"decoder_seconds": one.decoder_seconds, "first_seconds": one.cost.seconds_to_first_block}
        row |= {"peak_mib": one.peak_mib, "tokens_per_second": speed, "forwards_per_token": one.cost.forwards_per_token}
        row["against_ar"] = speed / peers["AR"].cost.tokens_per_second
        row["against_reference"] = speed / reference.cost.tokens_per_second if reference else None
        # Of random rows, the reference decodes those of the first batch size.
        row["same_tokens_as_reference"] = one.ids[: len(reference.ids)] == reference.ids if reference else None
        rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """Writes the numbers as a Markdown table."""
    lines = []
    for row in rows:
        inside = row["decoder_seconds"]
        cells = (
            row["task"],
            str(row["batch"]),
            row["contender"],
            f"{row['tokens_per_second']:,.1f}",
            f"{row['against_ar']:.2f}x",
            "" if row["against_reference"] is None else f"{row['against_reference']:.2f}x",
            f"{row['forwards_per_token']:.3f}",
            f"{1e3 * row['first_seconds']:.0f}",
            "" if inside is None else f"{inside / row['seconds']:.0%}",
            f"{row['peak_mib']:.0f}",
            "" if row["quality"] is None else f"{row['quality']:.3f}",
        )
        lines.append(cells)
    return markdown(HEADER, lines)


def draw(results: list[Measured], path: Path) -> None:
    """Draws bars of tokens/s, in a panel for each task and batch size."""
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(one.task for one in results))
    sizes = sorted({one.batch for one in results})
    figure, axes = pyplot.subplots(
        len(tasks), len(sizes), figsize=(4 * len(sizes), 2.4 * len(tasks)), squeeze=False, layout="constrained"
    )
    for task, row in zip(tasks, axes, strict=True):
        for batch, axis in zip(sizes, row, strict=True):
            bars = [one for one in results if (one.task, one.batch) == (task, batch)][::-1]
            colors = ["#1f9e89" if one.contender.startswith("ours") else "#9aa5b1" for one in bars]
            drawn = axis.barh(
                [one.contender for one in bars], [one.cost.tokens_per_second for one in bars], color=colors
            )
            axis.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
            axis.set_title(f"{task}, batch {batch}", fontsize=9)
            axis.margins(x=0.2)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("tokens per second", fontsize=9)
    figure.savefig(path)
