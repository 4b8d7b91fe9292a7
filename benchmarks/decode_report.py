"""What `decode.py` has measured, as numbers, a table and a chart."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Measured:
    """One contender on one task, summed over its batches.

    Attributes:
        task: The task's name.
        contender: The contender's name.
        batch: Prompts of a batch.
        quality: What the task's judge says.
        tokens: Of all answers.
        forwards: Summed over the rows that took part in them.
        seconds: In all.
        decoder_seconds: Of these, in the layers of the base's language model; all else is its head, choosing tokens,
            and what a loop does around them. None on a GPU, which is not waited for there.
        first_seconds: Until the first tokens of a batch were there, on average: an AR model's first one, or a block.
        peak_mib: The most memory that the process had meanwhile; on a GPU, that was allocated on it.
        ids: Of the answers.
    """

    task: str
    contender: str
    batch: int
    quality: float | None = None
    tokens: int = 0
    forwards: float = 0.0
    seconds: float = 0.0
    decoder_seconds: float | None = None
    first_seconds: float = 0.0
    peak_mib: float = 0.0
    ids: list[list[int]] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.tokens / self.seconds


def as_line(one: Measured) -> str:
    """A measurement for people."""
    quality = "" if one.quality is None else f"  quality {one.quality:.3f}"
    return (
        f"{one.task:26s} {one.contender:21s} batch {one.batch:2d}  {one.tokens_per_second:8.1f} tokens/s  "
        f"{one.forwards / one.tokens:6.3f} forwards/token  first {1e3 * one.first_seconds:8.1f} ms  "
        f"peak {one.peak_mib:6.0f} MiB{quality}"
    )


def summary(results: list[Measured]) -> list[dict[str, Any]]:
    """The numbers, with the ratios to AR and to the reference with the same schedule."""
    rows = []
    for one in results:
        peers = {other.contender: other for other in results if (other.task, other.batch) == (one.task, one.batch)}
        schedule = "dynamic" if one.contender.endswith("dynamic") else "static"
        reference = peers[f"reference, {schedule}"] if one.contender.startswith(("ours", "reference")) else None
        row = {name: value for name, value in asdict(one).items() if name != "ids"}
        row["tokens_per_second"] = one.tokens_per_second
        row["forwards_per_token"] = one.forwards / one.tokens
        row["against_ar"] = one.tokens_per_second / peers["AR"].tokens_per_second
        row["against_reference"] = one.tokens_per_second / reference.tokens_per_second if reference else None
        # Of random rows, the reference decodes those of the first batch size.
        row["same_tokens_as_reference"] = one.ids[: len(reference.ids)] == reference.ids if reference else None
        rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """The numbers as a Markdown table."""
    lines = [
        "| task | batch | decoding | tokens/s | against AR | against the reference | forwards per token "
        "| first tokens, ms | in the layers | peak, MiB | quality |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        inside = row["decoder_seconds"]
        cells = (
            row["task"],
            row["batch"],
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
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(results: list[Measured], path: Path) -> None:
    """Bars of tokens/s, a panel for each task and batch size."""
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
            drawn = axis.barh([one.contender for one in bars], [one.tokens_per_second for one in bars], color=colors)
            axis.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
            axis.set_title(f"{task}, batch {batch}", fontsize=9)
            axis.margins(x=0.2)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("tokens per second", fontsize=9)
    figure.savefig(path)
