"""Certainty: what makes a model sure of the tokens that it already gets right, and the states that it decodes through.

Legend: B rows, T tokens of a row, M tokens that are predicted, V vocabulary.
"""

import torch
from torch import Tensor

from .corruption import Corrupted, Supervised


def certainty_loss(logits: Tensor, correct: Tensor) -> Tensor:
    """Entropy in nats of each prediction that is right already, 0 for the others (dParallel, arXiv 2509.26488).

    Args:
        logits: [M, V].
        correct: Whether the most probable token is the right one [M].
    """
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1) * correct


def mask_least_certain(
    x_0: Tensor, supervised: Supervised, t: Tensor, confidence: Tensor, mask_token_id: int
) -> Corrupted:
    """Masks, of the n supervised tokens of each block, the ceil(t n) of which the model is least certain.

    Chance leaves states that decoding never meets; these are the states that it passes through when it writes the
    tokens of a block in the order of its confidence, and writes them right.

    Args:
        x_0: Clean tokens [B, T].
        supervised: The tokens that carry loss.
        t: Noise level of each supervised token's block [B, T].
        confidence: The model's confidence in each token, given a block of masks [B, T].
        mask_token_id: The id that replaces a masked token.

    Returns:
        The corrupted batch, in which t is the share of a block's supervised tokens that are masked.
    """
    chosen = supervised.mask.flatten().nonzero()[:, 0]
    run = supervised.run.flatten()[chosen]
    order = confidence.flatten()[chosen].argsort(stable=True)
    order = order[run[order].argsort(stable=True)]  # block by block, the least certain first
    sizes = run.bincount(minlength=1)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[run[order]]
    few = rank < (t.flatten()[chosen] * sizes[run]).ceil()
    return _mask(x_0, supervised, few, mask_token_id)


def mask_from_a_step(x_0: Tensor, supervised: Supervised, t: Tensor, written: Tensor, mask_token_id: int) -> Corrupted:
    """Masks what decoding had not written yet before one of the S steps of each block, the step S - ceil(t S).

    That is a state which the model has passed through (one half-denoised state a block, as in OPDLM, arXiv 2606.06712),
    and a uniform t makes each of them equally likely. A block of 6 tokens that took 3 steps::

        written    0 0 1 0 2 1
        t <= 1/3   . . . . M .      before the last step
        t <= 2/3   . . M . M M
        else       M M M M M M      before the first one

    Args:
        x_0: Clean tokens [B, T].
        supervised: The tokens that carry loss; a block without one that was written late has fewer steps.
        t: Noise level of each supervised token's block [B, T].
        written: Step of its block, from 0, in which each token was written [B, T].
        mask_token_id: The id that replaces a masked token.

    Returns:
        The corrupted batch, in which t is the share of a block's supervised tokens that are masked.
    """
    chosen = supervised.mask.flatten().nonzero()[:, 0]
    run, step = supervised.run.flatten()[chosen], written.flatten()[chosen]
    sizes = run.bincount(minlength=1)
    steps = torch.zeros_like(sizes).scatter_reduce(0, run, step + 1, "amax")[run]
    late = step >= steps - (t.flatten()[chosen] * steps).ceil()
    return _mask(x_0, supervised, late, mask_token_id)


def _mask(x_0: Tensor, supervised: Supervised, wanted: Tensor, mask_token_id: int) -> Corrupted:
    """Masks some of the n supervised tokens [n]; the level of each block is the share of it that is masked.

    The level that was drawn is not: of a block of n tokens at least one is masked, where it may be near 0, and 1 / t
    would weigh that one by up to 1,000.
    """
    chosen = supervised.mask.flatten().nonzero()[:, 0]
    run = supervised.run.flatten()[chosen]
    sizes = run.bincount(minlength=1)
    share = torch.zeros(len(sizes), device=x_0.device).index_add(0, run, wanted.float())[run] / sizes[run]
    masked = torch.zeros_like(supervised.mask).flatten().index_copy(0, chosen, wanted).view_as(x_0)
    t = torch.zeros(x_0.numel(), device=x_0.device).index_copy(0, chosen, share).view_as(x_0)
    return Corrupted(x_0.masked_fill(masked, mask_token_id), masked, t)
