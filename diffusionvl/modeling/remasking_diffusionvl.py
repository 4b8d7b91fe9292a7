"""Remasking: which tokens of a block a denoising step keeps. Pure functions.

Legend: B batch, D block size, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

REMASKING = ("low_confidence_static", "low_confidence_dynamic")
Generators = torch.Generator | Sequence[torch.Generator] | None


def transfer_schedule(block_size: int, denoising_steps: int) -> list[int]:
    """Tokens that each step of a block must keep; they sum to D, and the first steps take the remainder.

    >>> transfer_schedule(8, 3)
    [3, 3, 2]
    """
    base, remainder = divmod(block_size, denoising_steps)
    return [base + (step < remainder) for step in range(denoising_steps)]


def choose_tokens(
    logits: Tensor,
    forbidden_ids: list[int],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: Generators = None,
) -> tuple[Tensor, Tensor]:
    """Draws a token for every place and tells how sure the model is of it.

    Forbidden ids are left out of the choice, not out of the softmax: the confidence of a token is its probability
    under the (tempered and truncated) distribution over the whole vocabulary, as in the reference.

    Args:
        logits: [B, D, V].
        forbidden_ids: Ids that are never chosen, the mask token first of all.
        temperature: 0 takes the most probable token.
        top_k: Keep the k most probable tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        generator: One for the batch, or one a row, so that a row draws the same in any batch.

    Returns:
        Tokens [B, D] and their confidences [B, D] in fp32.
    """
    logits = logits.float()
    allowed = logits.clone()
    allowed[..., forbidden_ids] = -torch.inf
    if temperature == 0:
        tokens = allowed.argmax(-1)
        return tokens, logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    flat = _warp(allowed.flatten(0, 1), temperature, top_k, top_p)
    draws = flat.softmax(-1).view(logits.shape)
    if isinstance(generator, Sequence):
        tokens = torch.stack([row.multinomial(1, generator=own) for row, own in zip(draws, generator, strict=True)])
    else:
        tokens = draws.flatten(0, 1).multinomial(1, generator=generator).view(*logits.shape[:2], 1)
    # The kept tokens compete with the forbidden ones for confidence, but not for being drawn.
    kept = flat.view(logits.shape)
    kept[..., forbidden_ids] = logits[..., forbidden_ids] / temperature
    return tokens[..., 0], kept.softmax(-1).gather(-1, tokens)[..., 0]


def _warp(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Temperature, then top-k, then top-p, by transformers' own warpers. [N, V] -> [N, V]."""
    ids = torch.empty(0, dtype=torch.long)  # the warpers do not read the tokens so far
    logits = TemperatureLogitsWarper(float(temperature))(ids, logits)
    if top_k > 0:
        logits = TopKLogitsWarper(top_k)(ids, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(ids, logits)
    return logits


def tokens_to_keep(
    confidence: Tensor, masked: Tensor, quota: int, remasking: str, confidence_threshold: float
) -> Tensor:
    """Low-confidence remasking (DiffusionVL, arXiv 2512.15713, section 3.3): the least sure tokens stay masked.

    Static keeps the `quota` surest masked tokens. Dynamic keeps all that are surer than the threshold, if these are
    at least `quota`; otherwise it does as static. Ties go to the earlier token.

    Args:
        confidence: Confidence of each drawn token [B, D].
        masked: Which places are still masked [B, D].
        quota: Tokens that each row must keep in this step.
        remasking: `low_confidence_static` or `low_confidence_dynamic`.
        confidence_threshold: Probability in [0, 1]; read by dynamic remasking alone.

    Returns:
        Boolean [B, D], a subset of `masked`.
    """
    ranked = confidence.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    keep = (ranked.argsort(dim=-1) < quota) & masked
    if remasking == "low_confidence_static":
        return keep
    sure = (confidence > confidence_threshold) & masked
    return torch.where(sure.sum(-1, keepdim=True) >= quota, sure, keep)
