"""Corruption: from clean tokens x_0 to noisy tokens x_t, with one noise level a block.

Legend: B rows, T tokens of a row, N blocks of a document.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .noise_schedule import NOISE_ORDERS, T_MIN, reference_t, stratified_t

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
    document_ids: Tensor | None = None,
    stream_ids: Tensor | None = None,
    complementary: bool = False,
) -> Corrupted:
    """Corrupts a batch of documents, each by randomness of its own (seed, step, row).

    A document may have several noisy copies (views), which draw one after another. With `complementary`, views come in
    pairs: the second masks exactly the tokens that the first leaves, at the level 1 - t, so that each token is learned
    once in a pair. Where the first masks with probability t, that is probability 1 - t of being masked for the second:
    weighted by 1 / t and 1 / (1 - t), both are the estimate that they would be alone. Levels of pairs stay in
    [T_MIN, 1 - T_MIN], since 1 - t is a level, too.

    Args:
        x_0: Tokens [B, T].
        supervised: Which tokens carry loss [B, T].
        block_ids: Block of each token [B, T], 0 to N - 1 inside its document.
        mask_token_id: The id that replaces a masked token.
        seed: Seed of the run.
        step: Optimizer step.
        rows: Index of each document in the data set.
        noise_order: `permuted`: strata over the document's supervised blocks, in random order. `reference`: the
            reference's order, over all blocks of the batch; a row's noise then depends on its batch. `sequence`:
            one level for all blocks of a document, as LLaDA has it (the paper's table 6 compares it).
        document_ids: Document of each token [B, T], an index into `rows`; every row is one if left out.
        stream_ids: View of each supervised token [B, T]; all are of one if left out.
        complementary: Whether views are pairs of complements.

    Returns:
        The corrupted batch, on `x_0`'s device.

    Raises:
        ValueError: `noise_order` is unknown.
    """
    if noise_order not in NOISE_ORDERS:
        raise ValueError(f"noise_order must be one of {NOISE_ORDERS}, got {noise_order!r}")
    generators = [row_generator(seed, step, row) for row in rows]
    views = _views(supervised, document_ids, stream_ids)
    levels = level_ids(block_ids, noise_order).flatten().cpu()
    t, u = (noise.view_as(x_0).to(x_0.device) for noise in _draw(views, levels, generators, noise_order, complementary))
    return mask_tokens(x_0, supervised, t, u, mask_token_id)


def level_ids(block_ids: Tensor, noise_order: str) -> Tensor:
    """What shares a noise level inside a view: a block, or with the order `sequence` all blocks. [B, T] -> [B, T]."""
    return torch.zeros_like(block_ids) if noise_order == "sequence" else block_ids


def _draw(
    views: dict[int, list[Tensor]],
    levels: Tensor,
    generators: list[torch.Generator],
    noise_order: str,
    complementary: bool,
) -> tuple[Tensor, Tensor]:
    """Noise levels and uniform draws of the supervised tokens, over the flattened batch."""
    t, u = torch.zeros(len(levels)), torch.ones(len(levels))
    reference = torch.empty(0)
    if noise_order == "reference":
        width = int(levels.max()) + 1
        reference = reference_t(torch.stack([torch.rand(width, generator=own) for own in generators]))
    t_max = 1 - T_MIN if complementary else 1.0
    for document, own_views in views.items():
        own = generators[document]
        for number, view in enumerate(own_views):
            if complementary and number % 2:
                first = own_views[number - 1]
                t[view] = 1 - t[first]
                u[view] = torch.where(u[first] <= t[first], 2.0, 0.0)  # never masked, always masked
                continue
            if noise_order == "reference":
                t[view] = reference[document, levels[view]]
            else:
                distinct, order = levels[view].unique(return_inverse=True)
                t[view] = stratified_t(len(distinct), own, t_max)[order]
            # Drawn for the supervised tokens alone, so that neither padding nor the layout of the row changes them.
            u[view] = torch.rand(len(view), generator=own)
    return t, u


def _views(supervised: Tensor, document_ids: Tensor | None, stream_ids: Tensor | None) -> dict[int, list[Tensor]]:
    """The supervised tokens of each document's views, as indices into the flattened batch, on the CPU."""
    index = supervised.flatten().cpu().nonzero()[:, 0]
    documents = index // supervised.shape[1] if document_ids is None else document_ids.flatten().cpu()[index]
    streams = torch.zeros_like(index) if stream_ids is None else stream_ids.flatten().cpu()[index]
    found: dict[int, list[Tensor]] = {}
    for document, stream in torch.stack([documents, streams]).unique(dim=1).T.tolist():
        found.setdefault(document, []).append(index[(documents == document) & (streams == stream)])
    return found
