"""Corruption: from clean tokens x_0 to noisy tokens x_t, with one noise level a block.

Legend: B rows, T tokens of a row, N blocks of a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .noise_schedule import NOISE_ORDERS, reference_t, stratified_t

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # constants of the splitmix64 generator


class Corrupted(NamedTuple):
    """A corrupted batch.

    Attributes:
        x_t: Tokens with masked ones replaced [B, T].
        masked: Which tokens are masked [B, T].
        t: Noise level of each supervised token's block, 0 elsewhere [B, T].
    """

    x_t: Tensor
    masked: Tensor
    t: Tensor


def row_generator(seed: int, step: int, row: int) -> torch.Generator:
    """Randomness of one row in one step: it does not depend on the batch, the process or what ran before."""
    state = 0
    for value in (seed, step, row):  # splitmix64 over the three numbers
        state = (state + value + _MIX[0]) % 2**64
        state = ((state ^ (state >> 30)) * _MIX[1]) % 2**64
        state = ((state ^ (state >> 27)) * _MIX[2]) % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


def mask_tokens(x_0: Tensor, supervised: Tensor, t: Tensor, u: Tensor, mask_token_id: int) -> Corrupted:
    """Masks each supervised token with probability t (BD3-LM, equation 2 with alpha(t) = 1 - t).

    Args:
        x_0: Clean tokens [B, T].
        supervised: Which tokens carry loss; no other is ever masked [B, T].
        t: Noise level of each token's block [B, T].
        u: Uniform draws [B, T].
        mask_token_id: The id that replaces a masked token.
    """
    masked = (u <= t) & supervised
    return Corrupted(x_0.masked_fill(masked, mask_token_id), masked, t.masked_fill(~supervised, 0))


def corrupt(
    x_0: Tensor,
    supervised: Tensor,
    block_ids: Tensor,
    mask_token_id: int,
    seed: int,
    step: int,
    rows: list[int],
    noise_order: str = "permuted",
) -> Corrupted:
    """Corrupts a batch of rows, each by randomness of its own (seed, step, row).

    Args:
        x_0: Tokens [B, T].
        supervised: Which tokens carry loss [B, T].
        block_ids: Block of each token [B, T], 0 to N - 1 inside its row.
        mask_token_id: The id that replaces a masked token.
        seed: Seed of the run.
        step: Optimizer step.
        rows: Index of each row in the data set.
        noise_order: `permuted`: strata over the row's supervised blocks, in random order. `reference`: the
            reference's order, over all blocks of the batch; a row's noise then depends on its batch. `sequence`:
            one level for all blocks of a row, as LLaDA has it (the paper's table 6 compares it).

    Returns:
        The corrupted batch, on `x_0`'s device.

    Raises:
        ValueError: `noise_order` is unknown.
    """
    if noise_order not in NOISE_ORDERS:
        raise ValueError(f"noise_order must be one of {NOISE_ORDERS}, got {noise_order!r}")
    generators = [row_generator(seed, step, row) for row in rows]
    t, u = torch.zeros(x_0.shape), torch.ones(x_0.shape)
    supervised_cpu, blocks = supervised.cpu(), block_ids.cpu()
    if noise_order == "reference":
        width = int(blocks.max()) + 1
        t = reference_t(torch.stack([torch.rand(width, generator=own) for own in generators])).gather(1, blocks)
    for row, own in enumerate(generators):
        carries = supervised_cpu[row]
        if noise_order == "permuted":
            _, order = blocks[row, carries].unique(return_inverse=True)
            levels = stratified_t(int(order.max()) + 1 if order.numel() else 0, own)
            t[row, carries] = levels[order]
        elif noise_order == "sequence":
            t[row, carries] = stratified_t(1, own)
        # Drawn for the supervised tokens alone, so that neither padding nor the layout of the row changes them.
        u[row, carries] = torch.rand(int(carries.sum()), generator=own)
    device = x_0.device
    return mask_tokens(x_0, supervised, t.to(device), u.to(device), mask_token_id)
