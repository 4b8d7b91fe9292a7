"""Rows of about one length in a batch."""

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


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
