"""Computes how likely a continuation is: exactly for an AR model, as a lower bound for a block-diffusion model.

Legend: A axes of a position, P prompt, C continuation, L = P + C + fill, R tokens of the blocks that hold the
continuation, K samples, n scored tokens of a block, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..modeling.families import is_token_type, placeholder_ids
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from ..objective.corruption import row_generator
from ..objective.loss import cross_entropy
from .decoding import on_model

NOISY_TOKENS = 4096  # most noisy tokens of a forward, so that the mask of a long continuation stays small


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, inputs: Mapping[str, Tensor], continuation: Tensor) -> tuple[float, bool]:
    """Returns an AR model's log-probability of a continuation in nats, and whether greedy decoding writes it.

    Args:
        model: An AR model in eval mode.
        inputs: One prompt [1, P] with its images.
        continuation: Tokens [C].
    """
    inputs = on_model(inputs, model)
    tokens = continuation[None].to(model.device)
    width = tokens.shape[1]
    for name, added in (("input_ids", tokens), ("attention_mask", torch.ones_like(tokens))):
        inputs[name] = torch.cat([inputs[name], added], dim=1)
    for name in inputs:
        if is_token_type(name):  # 0 for text
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, width))
    logits = model(**inputs, logits_to_keep=width + 1).logits[0, -width - 1 : -1]
    return -float(cross_entropy(logits, tokens[0]).sum()), bool((logits.argmax(-1) == tokens[0]).all())


@dataclass
class _Scored:
    """A prompt and its continuation, laid out for scoring.

    Attributes:
        ids: Clean tokens, filled up with masks to the edge of the last block [L].
        blocks: Block that each token is denoised with [L].
        numbers: Block of each token as the mask reads it, where it is noisy [L]: the number of its block's first token.
        clean: The same, where it is clean [L]; of a causal clean stream, one block a token.
        positions: Position of each token [A, L].
        first: Index of the first token of the first block that holds continuation.
        scored: Which of the tokens from `first` on are continuation [R].
        media: Image inputs of the prompt.
    """

    ids: Tensor
    blocks: Tensor
    numbers: Tensor
    clean: Tensor
    positions: Tensor
    first: int
    scored: Tensor
    media: dict[str, Any]


@torch.no_grad()
def likelihood_bound(
    model: DiffusionVLForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    continuation: Tensor,
    samples: int,
    seed: int,
) -> float:
    """Returns a lower bound of the log-probability that an answer begins with a continuation, in nats.

    A block's n tokens are scored by the evidence lower bound that the model is trained with (BD3-LM, equation 8).
    Its integral over t has a closed form: with t uniform, it is a sum over the number l of masked tokens,

        log p(block) >= - sum over l = 1 .. n of 1/l * E[ sum of the cross-entropies of l tokens, masked at random ]

    so a sample masks l tokens and gives them the weight n / l; the l of the samples are spread evenly over 1 .. n. What
    follows the continuation in its last block stays masked, since it is not asked for. With one token a block the bound
    is exact.

    Args:
        model: The model in eval mode.
        inputs: One prompt [1, P] with its images.
        continuation: Tokens [C].
        samples: Number K of samples.
        seed: Seed of the masks, which depend on nothing else: all choices of a question are masked alike.
    """
    laid_out = _lay_out(model, inputs, continuation)
    masks, weights = zip(
        *(_sample(laid_out, row_generator(seed, k, 0), k, samples) for k in range(samples)), strict=True
    )
    step = max(NOISY_TOKENS // len(laid_out.scored), 1)
    loss = 0.0
    for begin in range(0, samples, step):
        chosen = slice(begin, begin + step)
        masked, weight = (torch.stack(part[chosen]).to(model.device) for part in (masks, weights))
        loss += float(_weighted_loss(model, laid_out, masked, weight))
    return -loss / samples


def _lay_out(model: DiffusionVLForConditionalGeneration, inputs: Mapping[str, Tensor], continuation: Tensor) -> _Scored:
    """Appends a continuation to its prompt and fills its last block with masks."""
    inputs = on_model(inputs, model)
    prompt = inputs["input_ids"][0]
    media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    ids = torch.cat([prompt, continuation.to(prompt)])
    blocks = model.block_ids(ids[None], torch.ones_like(ids)[None])[0]
    fill = model.config.block_size - int((blocks == blocks[-1]).sum())
    ids = torch.cat([ids, ids.new_full((fill,), model.config.mask_token_id)])
    blocks = torch.cat([blocks, blocks[-1:].expand(fill)])
    positions = model.position_ids(ids[None], torch.ones_like(ids)[None], media)[:, 0]
    index = torch.arange(len(ids))
    clean = blocks
    if model.config.clean_attention == "causal":
        clean = model.clean_blocks(ids[None], torch.ones_like(ids)[None])[0]
    numbers = clean[torch.searchsorted(blocks, blocks)]
    first = int((blocks == blocks[len(prompt)]).nonzero()[0])
    scored = (index >= len(prompt)) & (index < len(ids) - fill)
    return _Scored(ids, blocks, numbers, clean, positions, first, scored[first:], media)


def _sample(laid_out: _Scored, generator: torch.Generator, sample: int, samples: int) -> tuple[Tensor, Tensor]:
    """Draws which tokens one sample masks [R], and their weights [R]; the fill holds masks already."""
    blocks = laid_out.blocks[laid_out.first :].cpu()
    scored = laid_out.scored
    masked, weights = torch.zeros_like(scored), torch.zeros(len(scored))
    for block in blocks.unique():
        members = ((blocks == block) & scored).nonzero()[:, 0]
        n = len(members)
        # The k-th of K strata of (0, n], so that every l has its share.
        level = min(int(n * (sample + float(torch.rand(1, generator=generator))) / samples), n - 1) + 1
        chosen = members[torch.randperm(n, generator=generator)[:level]]
        masked[chosen], weights[chosen] = True, n / level
    return masked, weights


def _weighted_loss(
    model: DiffusionVLForConditionalGeneration, laid_out: _Scored, masked: Tensor, weights: Tensor
) -> Tensor:
    """Sums the weighted cross-entropy over K noisy copies that share one clean stream.

    Args:
        model: The model in eval mode.
        laid_out: The prompt and its continuation.
        masked: Which tokens of each copy are masked [K, R].
        weights: Weights of the masked tokens that are scored [K, R].
    """
    copies, width = masked.shape
    length, first = len(laid_out.ids), laid_out.first
    clean = laid_out.ids[first:].expand(copies, -1)
    noisy = clean.masked_fill(masked, model.config.mask_token_id)
    # A noisy copy of an image placeholder takes its clean twin's features.
    media = torch.isin(noisy, noisy.new_tensor(placeholder_ids(model.base.config)))
    twins = torch.arange(first, length, device=noisy.device).expand(copies, -1)
    places = length + torch.arange(copies * width, device=noisy.device).view(copies, width)
    noisy = noisy.masked_fill(media, model.config.mask_token_id)
    streams = torch.arange(1, copies + 1, device=noisy.device)[:, None].expand(-1, width)
    repeated = laid_out.positions[:, None, first:].expand(-1, copies, -1).flatten(1)
    output = model(
        input_ids=torch.cat([laid_out.ids, noisy.flatten()])[None],
        block_ids=torch.cat([laid_out.clean, laid_out.numbers[first:].repeat(copies)])[None],
        stream_ids=torch.cat([torch.zeros_like(laid_out.ids), streams.flatten()])[None],
        position_ids=torch.cat([laid_out.positions, repeated], dim=1)[:, None],
        media_twins=torch.stack([places[media], twins[media]]),
        token_indices=places[masked],
        **laid_out.media,
    )
    return (cross_entropy(output.logits, clean[masked]) * weights[masked]).sum()
