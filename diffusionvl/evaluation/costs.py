"""What answers have cost, by the definitions of the paper and by generated tokens alone."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass
class SpeedRecord:
    """Costs of one task on one process; records of batches, tasks or processes add up.

    Attributes:
        requests: Answers.
        generated_tokens: Tokens that `generate` wrote, with each answer's end of sequence.
        forwards: Summed over the rows that took part in them.
        generate_seconds: Inside `generate`, summed over batches and processes.
        first_block_seconds: From the start of `generate` to its first tokens, summed over requests.
        text_tokens: The paper's count: tokens of the answers' text, encoded again after the reference's cut.
        loop_seconds: The paper's time: everything between a request and its answer, image decoding and preprocessing
            included. Of several processes, the longest.
        processes: That worked side by side.
    """

    requests: int = 0
    generated_tokens: int = 0
    forwards: int = 0
    generate_seconds: float = 0.0
    first_block_seconds: float = 0.0
    text_tokens: int = 0
    loop_seconds: float = 0.0
    processes: int = 1

    def add(self, other: "SpeedRecord") -> None:
        """Adds what the same process has done before or after."""
        for field in fields(self):
            if field.name != "processes":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def metrics(self) -> dict[str, float]:
        """What is told of it. Speeds are those of one device, the mean over processes."""
        return {
            "requests": self.requests,
            "generated_tokens": self.generated_tokens,
            "tokens_per_second": _ratio(self.generated_tokens, self.generate_seconds),
            "forwards_per_token": _ratio(self.forwards, self.generated_tokens),
            "seconds_to_first_block": _ratio(self.first_block_seconds, self.requests),
            "paper_tokens_per_second": _ratio(self.text_tokens, self.loop_seconds * self.processes),
            "generate_seconds": self.generate_seconds,
            "loop_seconds": self.loop_seconds,
            "processes": self.processes,
        }


def gather(records: Iterable[SpeedRecord]) -> SpeedRecord:
    """One record of processes that worked side by side on the same task."""
    total = SpeedRecord(processes=0)
    longest = 0.0
    for record in records:
        total.add(record)
        total.processes += record.processes
        longest = max(longest, record.loop_seconds)
    total.loop_seconds = longest
    return total


def gather_processes(speeds: dict[str, SpeedRecord], processes: int) -> dict[str, SpeedRecord]:
    """The costs of each task over all processes; every process must call it."""
    everyone: list[Any] = [speeds]
    if processes > 1 and torch.distributed.is_initialized():
        everyone = [None] * processes
        torch.distributed.all_gather_object(everyone, speeds)
    tasks = sorted({task for own in everyone for task in own})
    return {task: gather(own.get(task, SpeedRecord()) for own in everyone) for task in tasks}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
