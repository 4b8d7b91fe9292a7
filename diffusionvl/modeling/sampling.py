"""Drawing a token for every masked place, and how sure the model is of it.

Legend: M masked places of all rows, row by row; V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

Generators = torch.Generator | Sequence[torch.Generator] | None


class Sampling(NamedTuple):
    """How tokens are drawn and kept: settings of `DiffusionVLGenerationConfig`, by their names there."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    remasking: str = "low_confidence_static"
    confidence_threshold: float = 0.85
    entropy_bound: float = 0.1


def choose_tokens(
    logits: Tensor,
    forbidden_ids: Tensor,
    sampling: Sampling = Sampling(),  # noqa: B008  (a tuple)
    generators: Sequence[torch.Generator | None] = (None,),
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws a token for every place and tells how sure the model is of it.

    Forbidden ids are left out of the choice, not out of the softmax: the confidence of a token is its probability
    under the (tempered and truncated) distribution over the whole vocabulary, as in the reference.

    Args:
        logits: [M, V].
        forbidden_ids: Ids that are never chosen, the mask token first of all [n].
        sampling: Its temperature, top_k and top_p; temperature 0 takes the most probable token.
        generators: The source of randomness of each row, so that a row draws the same in any batch.
        counts: Places of each row; they sum to M. All belong to one row if left out.

    Returns:
        Tokens [M] and their confidences [M] in fp32, which are not numbers where the scores are not.
    """
    logits = logits.float()
    allowed = logits.index_fill(1, forbidden_ids, -torch.inf)
    if sampling.temperature == 0:
        tokens = allowed.argmax(-1, keepdim=True)
        return tokens[:, 0], logits.softmax(-1).gather(1, tokens)[:, 0]
    kept = _warp(allowed, sampling)
    # A row of scores that are not numbers must not stop the others; its confidence tells.
    parts = kept.softmax(-1).nan_to_num(nan=1.0).split([len(logits)] if counts is None else list(counts))
    draws = [part.multinomial(1, generator=own) for part, own in zip(parts, generators, strict=True) if len(part)]
    tokens = torch.cat([*draws, logits.new_empty(0, 1, dtype=torch.long)])
    # The kept tokens compete with the forbidden ones for confidence, but not for being drawn.
    kept[:, forbidden_ids] = logits[:, forbidden_ids] / sampling.temperature
    return tokens[:, 0], kept.softmax(-1).gather(1, tokens)[:, 0]


def _warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then top-k, then top-p, by transformers' own warpers. [M, V] -> [M, V]."""
    ids = torch.empty(0, dtype=torch.long)  # the warpers do not read the tokens so far
    logits = TemperatureLogitsWarper(float(sampling.temperature))(ids, logits)
    if sampling.top_k > 0:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    return logits
