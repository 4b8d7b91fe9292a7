"""Corruption turns clean tokens x_0 into noisy tokens x_t, with one noise level for each block.

Legend: B rows, T tokens of a row, N blocks of a document, K documents of a batch.
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from .noise_schedule import NOISE_ORDERS, T_MIN, reference_t, stratified_t, tilted


class Supervised(NamedTuple):
    """The tokens of a batch that carry loss, and where each token stands. All fields are [B, T].

    Attributes:
        mask: Whether the token carries loss; no other token is ever masked.
        block: The token's block; its numbers need not be consecutive.
        document: The token's document, 0 to K - 1 over the batch, -1 for padding.
        stream: The noisy copy (view) that the token belongs to.
    """

    mask: Tensor
    block: Tensor
    document: Tensor
    stream: Tensor

    @classmethod
    def of(
        cls, mask: Tensor, block: Tensor, document: Tensor | None = None, stream: Tensor | None = None
    ) -> "Supervised":
        """With the usual defaults: every row is a document, and has one view."""
        if document is None:
            document = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)
        return cls(mask, block, document, torch.zeros_like(block) if stream is None else stream)

    @property
    def starts(self) -> Tensor:
        """Whether a token is the first of its block; tokens of a block stand next to one another. [B, T]"""
        ids = torch.stack([self.block, self.document, self.stream])
        starts = torch.ones_like(self.mask)
        starts[:, 1:] = (ids[..., 1:] != ids[..., :-1]).any(0)
        return starts

    @property
    def place(self) -> Tensor:
        """Place of each token in its block, 0 to D - 1. [B, T]"""
        place = torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask)
        return place - torch.where(self.starts, place, 0).cummax(1).values

    @property
    def run(self) -> Tensor:
        """Number of each token's block, counted over the batch, each copy on its own. [B, T]"""
        return self.starts.flatten().cumsum(0).view_as(self.mask) - 1

    def share_levels(self, noise_order: str) -> "Supervised":
        """The same tokens, where `block` says which of them share a noise level: all of a view for `sequence`."""
        return self._replace(block=torch.zeros_like(self.block)) if noise_order == "sequence" else self


class Corrupted(NamedTuple):
    """A corrupted batch.

    Attributes:
        x_t: Tokens, of which the masked ones are replaced [B, T].
        masked: Whether a token is masked [B, T].
        t: Noise level of each supervised token, the probability that it is masked, 0 elsewhere [B, T].
    """

    x_t: Tensor
    masked: Tensor
    t: Tensor


def row_generator(seed: int, step: int, row: int) -> torch.Generator:
    """The randomness of one row in one step; it does not depend on the batch, the process or earlier steps."""
    return torch.Generator().manual_seed(random.Random(f"{seed}-{step}-{row}").getrandbits(63))


def mask_tokens(x_0: Tensor, supervised: Tensor, t: Tensor, u: Tensor, mask_token_id: int) -> Corrupted:
    """Masks each supervised token with probability t (BD3-LM, equation 2 with alpha(t) = 1 - t).

    Args:
        x_0: Clean tokens [B, T].
        supervised: Whether a token carries loss; no other is ever masked [B, T].
        t: Noise level of each token's block [B, T].
        u: Uniform draws [B, T].
        mask_token_id: The id that replaces a masked token.
    """
    masked = (u <= t) & supervised
    return Corrupted(x_0.masked_fill(masked, mask_token_id), masked, t.masked_fill(~supervised, 0))


def corrupt(
    x_0: Tensor,
    supervised: Supervised,
    mask_token_id: int,
    generators: list[torch.Generator],
    noise_order: str = "permuted",
    complementary: bool = False,
    mask_slope: float = 0.0,
) -> Corrupted:
    """Corrupts a batch of documents, each by a generator of its own.

    A document may have several noisy copies (views), which draw one after another. With `complementary`, views come in
    pairs: the second masks exactly the tokens that the first leaves, at the level 1 - t, so that each token is learned
    once in a pair. Weighted by 1 / t and 1 / (1 - t), both are the estimate that they would be alone. The levels of
    pairs stay in [T_MIN, 1 - T_MIN], since 1 - t is a level, too.

    Args:
        x_0: Tokens [B, T].
        supervised: The tokens that carry loss.
        mask_token_id: The id that replaces a masked token.
        generators: The randomness of each of the K documents (`row_generator`).
        noise_order: `permuted`: strata over the document's supervised blocks, in random order. `reference`: the
            reference's order, over all blocks of the batch; a row's noise then depends on its batch. `sequence`:
            one level for all blocks of a document, as in LLaDA (the paper's table 6 compares it).
        complementary: Whether views are pairs of complements.
        mask_slope: How much more often the last tokens of a block are masked than the first (`tilted`).

    Returns:
        The corrupted batch, on `x_0`'s device.

    Raises:
        ValueError: `noise_order` is unknown.
    """
    if noise_order not in NOISE_ORDERS:
        raise ValueError(f"noise_order must be one of {NOISE_ORDERS}, got {noise_order!r}")
    levels = supervised.share_levels(noise_order).block.flatten().cpu()
    t, u = torch.zeros(len(levels)), torch.ones(len(levels))
    places = relative_places(supervised).flatten().cpu() if mask_slope else None
    reference = None
    if noise_order == "reference":
        blocks = int(levels.max()) + 1
        reference = reference_t(torch.stack([torch.rand(blocks, generator=own) for own in generators]))
    t_max = 1 - T_MIN if complementary else 1.0
    for document, views in _views(supervised).items():
        own = generators[document]
        for number, view in enumerate(views):
            if complementary and number % 2:
                t[view], u[view] = _complement(t[views[number - 1]], u[views[number - 1]])
                continue
            if reference is not None:
                t[view] = reference[document, levels[view]]
            else:
                distinct, order = levels[view].unique(return_inverse=True)
                t[view] = stratified_t(len(distinct), own, t_max)[order]
            if places is not None:
                t[view] = tilted(t[view], places[view], mask_slope).clamp(T_MIN, t_max)
            # Drawn for the supervised tokens alone, so that neither padding nor the layout of the row changes them.
            u[view] = torch.rand(len(view), generator=own)
    t, u = (noise.view_as(x_0).to(x_0.device) for noise in (t, u))
    return mask_tokens(x_0, supervised.mask, t, u, mask_token_id)


def _complement(t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Levels and draws of the second view of a pair from those of the first: it masks exactly what the first leaves."""
    return 1 - t, torch.where(u <= t, torch.inf, 0.0)  # never masked, always masked


def relative_places(supervised: Supervised) -> Tensor:
    """Place of each token in its block, from -1 for the first to 1 for the last, 0 where it is alone. [B, T]"""
    run, place = supervised.run.flatten(), supervised.place.float()
    last = (run.bincount() - 1)[run].view_as(place)
    return torch.where(last > 0, 2 * place / last.clamp(min=1) - 1, 0.0)


def _views(supervised: Supervised) -> dict[int, list[Tensor]]:
    """The supervised tokens of each document's views, as indices into the flattened batch, on the CPU."""
    index = supervised.mask.flatten().cpu().nonzero()[:, 0]
    documents, streams = (ids.flatten().cpu()[index] for ids in (supervised.document, supervised.stream))
    found: dict[int, list[Tensor]] = {}
    for document, stream in torch.stack([documents, streams]).unique(dim=1).T.tolist():
        found.setdefault(document, []).append(index[(documents == document) & (streams == stream)])
    return found
