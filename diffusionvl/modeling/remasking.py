"""Remasking policies: which tokens of a block a denoising step keeps; the others stay masked. Pure functions.

A policy takes a `Draft` and the `Sampling` settings of its rows and returns the places it keeps. To add one, write the
function, list it in `REMASKING`, and test it in `tests/modeling/test_remasking.py`; it has the function's name
everywhere. A number of its own is a field of `Sampling` and of `DiffusionVLGenerationConfig`.

Legend: B rows, D block size, M masked places of all rows, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .sampling import Sampling


class Draft(NamedTuple):
    """What a denoising step has drawn for its rows.

    Attributes:
        confidence: Confidence of the drawn token of each masked place; not read elsewhere [B, D].
        masked: Which places are masked [B, D].
        quota: Tokens that a row must keep at least, so that its block is done after its last step [B, 1].
        logits: Of the masked places, row by row [M, V].
        in_order: Which rows are written from left to right, where no place is surer than those before it [B, 1].
    """

    confidence: Tensor
    masked: Tensor
    quota: Tensor
    logits: Tensor
    in_order: Tensor | None = None

    @property
    def entropy(self) -> Tensor:
        """Entropy of the model's own distribution at each masked place, in nats; 0 elsewhere [B, D]."""
        entropy = torch.special.entr(self.logits.float().softmax(-1)).sum(-1)
        spread = torch.zeros_like(self.confidence).masked_scatter(self.masked, entropy)
        return spread if self.in_order is None else torch.where(self.in_order, spread.cummax(-1).values, spread)


def transfer_schedule(block_size: int, denoising_steps: int) -> list[int]:
    """Tokens that each step of a block must keep; they sum to D, and the first steps take the remainder.

    >>> transfer_schedule(8, 3)
    [3, 3, 2]
    """
    base, remainder = divmod(block_size, denoising_steps)
    return [base + (step < remainder) for step in range(denoising_steps)]


def low_confidence_static(draft: Draft, sampling: Sampling) -> Tensor:
    """Keeps the surest masked tokens, as many as the quota; ties go to the earlier token.

    DiffusionVL, arXiv 2512.15713, section 3.3. Returns a subset of `draft.masked` [B, D], as every policy does.
    """
    return (_rank(-draft.confidence, draft.masked) < draft.quota) & draft.masked


def low_confidence_dynamic(draft: Draft, sampling: Sampling) -> Tensor:
    """Keeps all that are surer than the threshold, if these reach the quota; else it does as the static policy.

    DiffusionVL, arXiv 2512.15713, section 3.3.
    """
    sure = (draft.confidence > sampling.confidence_threshold) & draft.masked
    enough = sure.sum(-1, keepdim=True) >= draft.quota
    return torch.where(enough, sure, low_confidence_static(draft, sampling))


def entropy_bounded(draft: Draft, sampling: Sampling) -> Tensor:
    """Keeps the most certain tokens while the entropies before them sum to the bound at most, and the quota at least.

    Places are independent given what is written, so the sum without the largest term bounds what is lost by writing
    them at once (EB-Sampler, arXiv 2505.24857; DiffusionGemma).
    """
    entropy = draft.entropy.masked_fill(~draft.masked, torch.inf)
    ordered, order = entropy.sort(dim=-1, stable=True)
    before = ordered.cumsum(-1) - ordered  # not a number after the masked places, which compares false
    certain = torch.zeros_like(draft.masked).scatter(-1, order, before <= sampling.entropy_bound)
    return (certain | (_rank(entropy, draft.masked) < draft.quota)) & draft.masked


def _rank(cost: Tensor, masked: Tensor) -> Tensor:
    """Place of each token among the masked ones of its row, the cheapest first, ties in order. [B, D]."""
    return cost.masked_fill(~masked, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)


Policy = Callable[[Draft, Sampling], Tensor]
REMASKING: dict[str, Policy] = {
    policy.__name__: policy for policy in (low_confidence_static, low_confidence_dynamic, entropy_bounded)
}
