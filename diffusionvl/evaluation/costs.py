"""What answers cost: tokens, forwards and seconds, counted in the same way wherever they are measured."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Cost:
    """The cost of some answers. Costs of questions, batches or rounds add up.

    Attributes:
        answers: Number of answers.
        tokens: Number of generated tokens; each answer's end of sequence counts.
        forwards: Number of forwards, summed over the rows that took part in them.
        seconds: Time spent decoding.
        first_seconds: Time until an answer's first tokens were there, summed over answers.
    """

    answers: int = 0
    tokens: int = 0
    forwards: float = 0
    seconds: float = 0.0
    first_seconds: float = 0.0

    def add(self, other: "Cost") -> None:
        """Adds the fields that both have."""
        for field in fields(other):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens in a second of decoding, of all rows together."""
        return _ratio(self.tokens, self.seconds)

    @property
    def forwards_per_token(self) -> float:
        """Forwards that a token took; 1 for an AR model."""
        return _ratio(self.forwards, self.tokens)

    @property
    def seconds_to_first_block(self) -> float:
        """Mean time until an answer's first tokens: an AR model's first one, or the first block."""
        return _ratio(self.first_seconds, self.answers)


@dataclass
class TaskCost(Cost):
    """The cost of a benchmark's answers, with the paper's own counts. `processes` adds up over processes.

    Attributes:
        text_tokens: The paper's count: tokens of the answers' text, encoded again after the reference's cut.
        loop_seconds: The paper's time: everything between a request and its answer, including the opening of images
            and preprocessing. Of several processes, the longest.
        processes: Number of processes that worked side by side.
    """

    text_tokens: int = 0
    loop_seconds: float = 0.0
    processes: int = 0

    def metrics(self) -> dict[str, float]:
        """The numbers that are reported. Speeds are those of one device, the mean over processes."""
        return {
            "requests": self.answers,
            "generated_tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "forwards_per_token": self.forwards_per_token,
            "seconds_to_first_block": self.seconds_to_first_block,
            "paper_tokens_per_second": _ratio(self.text_tokens, self.loop_seconds * self.processes),
            "generate_seconds": self.seconds,
            "loop_seconds": self.loop_seconds,
            "processes": self.processes,
        }


def gather(costs: Iterable[TaskCost]) -> TaskCost:
    """Joins the costs of processes that worked side by side on the same task."""
    total, longest = TaskCost(), 0.0
    for cost in costs:
        total.add(cost)
        longest = max(longest, cost.loop_seconds)
    total.loop_seconds = longest
    return total


def gather_processes(costs: dict[str, TaskCost], processes: int) -> dict[str, TaskCost]:
    """Joins the costs of each task over all processes; every process must call it."""
    import torch  # late, for commands that only name the metrics

    everyone: list[Any] = [costs]
    if processes > 1 and torch.distributed.is_initialized():
        everyone = [None] * processes
        torch.distributed.all_gather_object(everyone, costs)
    tasks = sorted({task for own in everyone for task in own})
    return {task: gather(own.get(task, TaskCost(processes=1)) for own in everyone) for task in tasks}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
