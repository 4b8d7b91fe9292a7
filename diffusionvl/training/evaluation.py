"""The evaluation loss, document by document."""

from accelerate.utils import gather_object
from torch import Tensor


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

    def add(self, rows: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Adds documents: their indices, weighted sums of losses, and what those are to be divided by, [K] each."""
        for row, total, count in zip(rows.tolist(), sums.tolist(), counts.tolist(), strict=True):
            if count:
                self._found[row] = (total, count)

    def loss(self, processes: int) -> float:
        """The loss over all documents of all processes; 0 if there are none."""
        found = dict(self._found)
        if processes > 1:
            for other in gather_object([self._found]):
                found |= other
        return sum(total for total, _ in found.values()) / max(sum(count for _, count in found.values()), 1)
