"""Choosing a token for every place, and how sure the model is of it.

Legend: M places of all rows, row by row; V vocabulary.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

Generators = torch.Generator | Sequence[torch.Generator | None] | None


class Sampling(NamedTuple):
    """How tokens are drawn and kept: settings of `DiffusionVLGenerationConfig`, by their names there."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    remasking: str = "low_confidence_static"
    confidence_threshold: float = 0.85
    entropy_bound: float = 0.1
    tempered_confidence: bool = False
    decoding: str = "denoise"
    verify_margin: float = 0.0


def choose_tokens(
    logits: Tensor,
    forbidden_ids: Tensor,
    sampling: Sampling = Sampling(),  # noqa: B008  (a tuple)
    generators: Sequence[torch.Generator | None] = (None,),
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws a token for every place, and says how sure the model is of it.

    The confidence of a token is its probability under the model's own distribution at temperature 1, so that what a
    step keeps does not depend on how its tokens are drawn: as the temperature falls, the answer becomes the greedy
    one. With `tempered_confidence` it is the probability under the tempered and truncated distribution, as in the
    reference. Forbidden ids are left out of the choice, not out of the softmax.

    Args:
        logits: [M, V].
        forbidden_ids: Ids that are never chosen, such as the mask token [n].
        sampling: Its temperature, top_k, top_p and tempered_confidence; temperature 0 takes the most probable token.
        generators: The source of randomness of each row, so that a row draws the same in any batch.
        counts: Number of places of each row; they sum to M. All belong to one row if left out.

    Returns:
        Tokens [M] and their confidences [M] in fp32, which are not numbers where the scores are not.
    """
    logits = logits.float()
    allowed = logits.index_fill(1, forbidden_ids, -torch.inf)
    if sampling.temperature == 0:
        tokens = allowed.argmax(-1, keepdim=True)
        return tokens[:, 0], logits.softmax(-1).gather(1, tokens)[:, 0]
    kept = truncate(allowed, sampling)
    # A row of scores that are not numbers must not stop the others; its confidence shows it.
    parts = kept.softmax(-1).nan_to_num(nan=1.0).split([len(logits)] if counts is None else list(counts))
    draws = [part.multinomial(1, generator=own) for part, own in zip(parts, generators, strict=True) if len(part)]
    tokens = torch.cat([*draws, logits.new_empty(0, 1, dtype=torch.long)])
    if sampling.tempered_confidence:  # the kept tokens compete with the forbidden ones, which are not drawn
        top = allowed.amax(-1, keepdim=True)
        kept[:, forbidden_ids] = (logits[:, forbidden_ids] - top) / _temperature(sampling)
        logits = kept
    return tokens[:, 0], logits.softmax(-1).gather(1, tokens)[:, 0]


def choose_next(
    logits: Tensor, sampling: Sampling, seeds: Sequence[int], columns: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses the token of every place so that the choice depends on its logits, its column and the row's seed alone.

    Gumbel noise, a function of seed, column and token, is added to the tempered and truncated logits: the largest sum
    is an exact sample, and whoever chooses at a place (a draft, its verification, an autoregressive step) sees the
    same noise.

    Args:
        logits: [M, V].
        sampling: Its temperature, top_k, top_p and verify_margin; temperature 0 takes the most probable token.
        seeds: Seed of each row.
        columns: The columns that are chosen for, of each row; M of all rows.

    Returns:
        Tokens [M], their probability under the model's own distribution [M], and whether each leads the next best one
        by the margin at least [M].
    """
    logits = logits.float()
    scores = logits
    if sampling.temperature > 0:
        noise = [gumbel(seed, column, logits) for seed, own in zip(seeds, columns, strict=True) for column in own]
        scores = truncate(logits, sampling) + torch.stack(noise) if noise else logits
    tokens = scores.argmax(-1, keepdim=True)
    clear = torch.ones_like(tokens[:, 0], dtype=torch.bool)
    if sampling.verify_margin > 0:
        first, second = scores.topk(2).values.unbind(-1)
        clear = first - second >= sampling.verify_margin
    return tokens[:, 0], logits.softmax(-1).gather(1, tokens)[:, 0], clear


def gumbel(seed: int, column: int, logits: Tensor) -> Tensor:
    """Gumbel noise for every token of one column [V], on the device of some logits [M, V]."""
    mixed = random.Random(f"{seed}-{column}").getrandbits(63)
    generator = torch.Generator(logits.device).manual_seed(mixed)
    return -logits.new_empty(logits.shape[1]).exponential_(generator=generator).log()


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Applies temperature, then top-k, then top-p, the latter two by transformers' own warpers. [M, V] -> [M, V].

    The largest score becomes 0 first, so that no temperature is too small.
    """
    ids = torch.empty(0, dtype=torch.long)  # the warpers do not read the tokens so far
    logits = (logits - logits.amax(-1, keepdim=True)) / _temperature(sampling)
    if sampling.top_k > 0:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    return logits


def _temperature(sampling: Sampling) -> float:
    """The temperature as a number of fp32 that is not rounded to 0."""
    return max(sampling.temperature, torch.finfo(torch.float32).tiny)
