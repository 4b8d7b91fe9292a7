"""What the log says of training steps: accuracy, cross-entropy by noise level, tokens and operations a second.

Legend: M tokens with a loss.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..modeling.block_masks import CLEAN, PADDING
from ..objective.loss import IGNORED
from .losses import COUNTS, TokenLosses

BUCKETS = 4  # of t, for the cross-entropy
COUNTED = ("clean", "noisy", "supervised")  # kinds of tokens


class TrainingMetrics:
    """Sums from one log to the next. Adding waits for no device; collecting does, and sums over the processes.

    Args:
        device: Where the sums of several processes meet.
        peak: Operations a second that one device can do, if it is known.
    """

    def __init__(self, device: torch.device, peak: float | None) -> None:
        self.device = device
        self.peak = peak
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._begin = time.perf_counter()

    def restart_clock(self) -> None:
        """Time runs from here."""
        self._begin = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count, as it is not spent on training."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    def add(self, **values: Tensor | float) -> None:
        """Adds to sums."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value

    def sum_of(self, name: str) -> float:
        """A sum of this process alone, as it stands."""
        return float(self._sums[name])

    def add_batch(self, batch: dict[str, Any], losses: TokenLosses) -> None:
        """Adds what a batch holds and what the model predicted of it.

        Args:
            batch: From `RowDataset.collate`.
            losses: Its losses.
        """
        real, clean = batch["document_ids"] != PADDING, batch["stream_ids"] == CLEAN
        self.add(
            **{name: batch[name] for name in COUNTS},
            clean=(real & clean).sum(),
            noisy=(real & ~clean).sum(),
            supervised=(batch["labels"] != IGNORED).sum(),
            correct=losses.correct.sum(),
            targets=losses.correct.numel(),
        )
        if losses.clean is not None:
            self.add(clean_surprise=losses.clean.surprise.detach().sum(), clean_targets=losses.clean.surprise.numel())
        if losses.noise is not None:
            self.add(t=losses.noise.t.sum())
            self.add_noise(losses.surprise, losses.noise.t.flatten()[losses.tokens])

    def add_noise(self, losses: Tensor, t: Tensor) -> None:
        """Adds to the cross-entropy by noise level: that of each masked token [M], and its block's t [M]."""
        bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)
        zeros = torch.zeros(BUCKETS, device=losses.device)
        self.add(
            cross_entropy=zeros.index_add(0, bucket, losses.detach().float()),
            masked=zeros.index_add(0, bucket, torch.ones_like(t)),
        )

    def collect(
        self, reduce: Callable[[Tensor], Tensor], names: tuple[str, ...]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What goes into the log, and sums as they are; begins anew.

        Args:
            reduce: Sums a tensor over the processes.
            names: Which sums are wanted as they are.
        """
        own = (
            "correct",
            "targets",
            "t",
            "flops",
            "processes",
            "clean_surprise",
            "clean_targets",
            "own_tokens",
            "own_forwards",
        )
        scalars = (*own, *COUNTED, *names)
        self.add(processes=1.0)  # summed, their number
        by_level = [torch.zeros(BUCKETS) + self._sums[name] for name in ("cross_entropy", "masked")]
        values = torch.tensor([float(self._sums[name]) for name in scalars], dtype=torch.float64)
        sums = reduce(torch.cat([values, *(level.double().cpu() for level in by_level)]).to(self.device))
        total = dict(zip(scalars, sums.tolist(), strict=False))
        seconds = time.perf_counter() - self._begin
        self._sums, self._begin = defaultdict(float), time.perf_counter()
        logs = {"accuracy": total["correct"] / max(total["targets"], 1)}
        logs["tokens_per_second"] = (total["clean"] + total["noisy"]) / seconds
        logs |= {f"{kind}_tokens_per_second": total[kind] / seconds for kind in COUNTED}
        operations = total["flops"] / seconds / total["processes"]
        logs["tflops_per_device"] = operations / 1e12
        if self.peak is not None:
            logs["mfu"] = operations / self.peak
        if total["clean_targets"]:
            logs["clean_cross_entropy"] = total["clean_surprise"] / total["clean_targets"]
        if total["own_tokens"]:
            logs["own_forwards_per_token"] = total["own_forwards"] / total["own_tokens"]
            logs["own_tokens_per_second"] = total["own_tokens"] / seconds
        logs["mean_t"] = total["t"] / max(total["supervised"], 1)
        surprise, masked = sums[len(scalars) :].view(2, BUCKETS).tolist()
        for level in range(BUCKETS):
            if masked[level]:
                name = f"cross_entropy_t{level / BUCKETS:.2f}-{(level + 1) / BUCKETS:.2f}"
                logs[name] = surprise[level] / masked[level]
        return logs, {name: total[name] for name in names}


class EvaluationLoss:
    """Sums and counts of each document's loss.

    transformers averages the losses of batches by their rows: batches of other sizes would give another loss wherever
    documents do not weigh the same, and the rows that fill up the last batch of several processes would count twice.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, float]] = {}  # by the document's index in the data set

    def clear(self) -> None:
        """Forgets what was added."""
        self._found.clear()

    def add(self, batch: dict[str, Any], losses: TokenLosses, counts: Tensor) -> None:
        """Adds the K documents of a batch, with what the sum of each document's losses is to be divided by [K]."""
        sums = torch.zeros(len(counts), device=losses.weighted.device)
        for part in losses.parts():
            sums.index_add_(0, batch["document_ids"].flatten()[part.tokens], part.weighted)
        for row, total, count in zip(batch["rows"].tolist(), sums.tolist(), counts.tolist(), strict=True):
            if count:
                self._found[row] = (total, count)

    def loss(self, processes: int) -> float:
        """The loss over all documents of all processes; 0 if there are none."""
        found = dict(self._found)
        if processes > 1:
            for other in gather_object([self._found]):
                found |= other
        return sum(total for total, _ in found.values()) / max(sum(count for _, count in found.values()), 1)
