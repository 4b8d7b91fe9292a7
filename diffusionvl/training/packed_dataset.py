"""Rows that hold several documents, and how long documents are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.packing import pack
from ..data.record import DataError
from .dataset import Outcome, RowDataset, report_left_out

BAD = (-1, 0)  # the size of a record that cannot be used


class PackedRowDataset(Dataset):
    """The rows of a data set, several to a row.

    Which documents share a row is settled once, before training: a row is then an index like any other, an epoch has
    as many rows as the one before, and sampler, schedule and exact resuming stay the Trainer's own. Only the
    documents' sizes are needed for that, which `measure_rows` finds without decoding an image.

    Args:
        rows: The data set.
        sizes: Tokens and images of each of its records [n, 2], `BAD` for one that is to be left out.
        max_tokens: Tokens of a row at most, clean and noisy ones; a longer document stands alone.
        max_images: Images of a row at most; a document with more stands alone.

    Attributes:
        bad_samples: Number of records that are left out because they cannot be used.
        long: Number of documents that are longer than `max_tokens`.
    """

    def __init__(self, rows: RowDataset, sizes: np.ndarray, max_tokens: int, max_images: int) -> None:
        self.rows = rows
        usable = (sizes[:, 0] >= 0).nonzero()[0]
        packs = pack(sizes[usable, 0], sizes[usable, 1], max_tokens, max_images)
        # Two arrays, since forked data loading processes would copy a list of lists, page by page.
        self.members = usable[np.concatenate(packs)] if packs else usable
        self.begins = np.cumsum([0, *map(len, packs)])
        self.bad_samples = len(sizes) - len(usable)
        self.long = int((sizes[:, 0] > max_tokens).sum())

    @property
    def max_bad_samples(self) -> int:
        """As of the rows."""
        return self.rows.max_bad_samples

    def set_epoch(self, epoch: int) -> None:
        """As of the rows."""
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.begins) - 1

    def __getitem__(self, index: int) -> list[Outcome]:
        return [self.rows[document] for document in self.documents(index)]

    def documents(self, index: int) -> list[int]:
        """Which records share a row."""
        return self.members[self.begins[index] : self.begins[index + 1]].tolist()

    def collate(self, outcomes: list[Any]) -> dict[str, Any]:
        """As of the rows."""
        return self.rows.collate(outcomes)


class RowSizes(Dataset):
    """The sizes of a process's share of the records; for one that cannot be used, the reason."""

    def __init__(self, rows: RowDataset, share: Sequence[int]) -> None:
        self.rows = rows
        self.share = share

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> tuple[int, int] | DataError:
        try:
            return self.rows.measure(self.share[index])
        except DataError as error:
            return error


def measure_rows(rows: RowDataset, workers: int = 0, process: int = 0, processes: int = 1) -> np.ndarray:
    """Tokens and images of every row [n, 2]; each process measures its share with its data loading processes.

    Args:
        rows: The data set.
        workers: Data loading processes.
        process: Number of this process.
        processes: Number of processes that call this; they get the same sizes.

    Raises:
        DataError: A record cannot be used, or more of them than `max_bad_samples` allows.
    """
    share = range(process, len(rows), processes)
    # A batch is a list, in which the sizes come back as they are, not as tensors.
    loader = DataLoader(RowSizes(rows, share), batch_size=64, num_workers=workers, collate_fn=list)
    own = []
    for size in (size for batch in loader for size in batch):
        if isinstance(size, DataError):
            if not rows.max_bad_samples:
                raise size
            report_left_out(size)
            size = BAD
        own.append(size)
    shares = gather_object([own]) if processes > 1 else [own]
    sizes = np.empty((len(rows), 2), dtype=np.int64)
    for number, found in enumerate(shares):
        sizes[number::processes] = np.array(found, dtype=np.int64).reshape(-1, 2)
    bad = int((sizes[:, 0] < 0).sum())
    if bad > rows.max_bad_samples:
        raise DataError(
            f"{bad} of {len(rows)} records cannot be used, more than max_bad_samples={rows.max_bad_samples}"
        )
    return sizes


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """transformers' sampler, in an order that the seed and the epoch alone settle, so that a run can be resumed.

    Args:
        batch_size: Rows of about one length: those of one optimizer step, over all processes.
        lengths: Length of every row.
        seed: Seed of the run.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the beginning of every epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)
