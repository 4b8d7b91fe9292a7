"""Decodings that `decode.py` compares with ours: the reference's loop, and full diffusion without a cache."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from diffusionvl import DiffusionVLForConditionalGeneration
from diffusionvl.evaluation.costs import Cost
from diffusionvl.modeling.block_masks import TokenTags, dense_mask
from diffusionvl.modeling.families import media_inputs, placeholder_ids
from diffusionvl.modeling.remasking import REMASKING, Draft, transfer_schedule
from diffusionvl.modeling.sampling import Sampling, choose_tokens

Inputs = dict[str, Tensor]


@dataclass
class Answers:
    """The answers to one batch.

    Attributes:
        tokens: Ids of each answer, up to its end of sequence.
        cost: Tokens, forwards and seconds.
    """

    tokens: list[list[int]]
    cost: Cost


def cut(row: list[int], ends: Sequence[int]) -> list[int]:
    """Returns an answer up to its first end of sequence."""
    return next((row[: place + 1] for place, token in enumerate(row) if token in ends), row)


def decode_like_the_reference(
    model: DiffusionVLForConditionalGeneration,
    rows: Sequence[Inputs],
    ends: Sequence[int],
    max_new_tokens: int,
    **sampling: Any,
) -> Answers:
    """Decodes by the reference's procedure, one prompt after another, with D steps a block.

    It prefills the prompt's blocks with logits of all their tokens, denoises with logits of the whole block, and
    commits each block, the last one too, by a forward of its own.

    Args:
        model: A model whose responses start their own blocks.
        rows: Inputs of one prompt each, without padding.
        ends: Ids that end an answer.
        max_new_tokens: Longest answer.
        **sampling: Settings for `Sampling`.
    """
    found = Answers([], Cost(len(rows)))
    start = time.perf_counter()
    for row in rows:
        ids, media = row["input_ids"], {name: value for name, value in row.items() if name in media_inputs(model.base)}
        real = torch.ones_like(ids)
        position = model.position_ids(ids, real, media)
        tags = TokenTags(model.block_ids(ids, real), torch.zeros_like(ids), torch.zeros_like(ids))
        cache = DynamicCache()
        model(ids, dense_mask(tags), position, past_key_values=cache, use_cache=True, **media)
        found.cost.forwards += 1
        tokens: list[int] = []
        while len(tokens) < max_new_tokens and not set(tokens) & set(ends):
            begin = int(position.max()) + 1 + len(tokens)
            window = begin + torch.arange(model.config.block_size, device=ids.device)
            block, forwards = _denoise(model, window.expand(len(position), 1, -1), cache, Sampling(**sampling))
            tokens += block
            found.cost.forwards += forwards
            if len(tokens) == len(block):
                found.cost.first_seconds += time.perf_counter() - start
        found.tokens.append(cut(tokens[:max_new_tokens], ends))
    found.cost.tokens, found.cost.seconds = sum(map(len, found.tokens)), time.perf_counter() - start
    return found


def _denoise(
    model: DiffusionVLForConditionalGeneration, position: Tensor, cache: DynamicCache, sampling: Sampling
) -> tuple[list[int], int]:
    """Decodes one block at these positions [A, 1, D]: its tokens, and the forwards that it and its commit took."""
    size, mask_id, device = model.config.block_size, model.config.mask_token_id, position.device
    ids = torch.full((1, size), mask_id, device=device)
    masked = torch.ones(1, size, dtype=torch.bool, device=device)
    mask = torch.ones(1, 1, size, cache.get_seq_length() + size, dtype=torch.bool, device=device)
    forwards = 1
    for quota in transfer_schedule(size, size):
        if not bool(masked.any()):
            break
        logits = model(ids, mask, position, past_key_values=cache, use_cache=True).logits[0]
        cache.crop(-size)
        tokens, confidence = choose_tokens(logits, _forbidden(model), sampling)
        draft = Draft(confidence[None], masked, torch.tensor([[quota]], device=device), logits)
        keep = REMASKING[sampling.remasking](draft, sampling)
        ids, masked = torch.where(keep, tokens, ids), masked & ~keep
        forwards += 1
    model(ids, mask, position, past_key_values=cache, use_cache=True)
    return ids[0].tolist(), forwards


def _forbidden(model: DiffusionVLForConditionalGeneration) -> Tensor:
    """Returns the ids that are never chosen."""
    return torch.tensor([model.config.mask_token_id, *placeholder_ids(model.base.config)], device=model.device)


def decode_fully(
    model: DiffusionVLForConditionalGeneration, inputs: Inputs, ends: Sequence[int], max_new_tokens: int, steps: int
) -> Answers:
    """Decodes by full diffusion: one token a step over prompt and answer, where every token sees every other one.

    Args:
        model: Any block-diffusion model.
        inputs: Prompts, padded on the left. Their images are read once.
        ends: Ids that end an answer.
        max_new_tokens: Tokens, and steps of a whole decoding.
        steps: Steps that are run. All cost the same, so the time of the others follows; the answer is then incomplete.
    """
    start = time.perf_counter()
    prompt, position, real = _read_prompt(model, inputs)
    batch, length = inputs["input_ids"].shape
    mask_id, device = model.config.mask_token_id, model.device
    ids = torch.full((batch, max_new_tokens), mask_id, device=device)
    later = position.amax((0, 2))[:, None] + 1 + torch.arange(max_new_tokens, device=device)
    position = torch.cat([position, later.expand(len(position), -1, -1)], dim=2)
    seen = torch.nn.functional.pad(real, (0, max_new_tokens), value=True)
    mask = seen[:, None, None, :].expand(batch, 1, length + max_new_tokens, length + max_new_tokens)
    read = time.perf_counter() - start
    for _ in range(steps):
        hidden = model.base.get_decoder()(
            inputs_embeds=torch.cat([prompt, model.get_input_embeddings()(ids)], dim=1),
            attention_mask=mask,
            position_ids=position if len(position) > 1 else position[0],
            use_cache=False,
        ).last_hidden_state
        logits = model.get_output_embeddings()(hidden[:, length:])
        tokens, confidence = choose_tokens(logits.flatten(0, 1), _forbidden(model), Sampling())
        surest = confidence.view_as(ids).masked_fill(ids != mask_id, -1.0).argmax(-1, keepdim=True)
        ids.scatter_(1, surest, tokens.view_as(ids).gather(1, surest))
    answers = [cut(row, ends) for row in ids.tolist()]  # waits for the device
    seconds = read + (time.perf_counter() - start - read) * max_new_tokens / steps
    # All tokens are free to change until the last step, so the first ones are there with the last.
    cost = Cost(batch, sum(map(len, answers)), batch * max_new_tokens, seconds, seconds * batch)
    return Answers(answers, cost)


def _read_prompt(model: DiffusionVLForConditionalGeneration, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Returns embeddings of the prompts and images [B, P, E], positions [A, B, P], and which tokens are not padding."""
    ids, wanted = inputs["input_ids"], media_inputs(model.base)
    media = {name: value for name, value in inputs.items() if name in wanted}
    real = inputs["attention_mask"].bool()
    found: list[Tensor] = []

    def catch(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings = kwargs["inputs_embeds"]
        found.append(model.get_input_embeddings()(ids) if embeddings is None else embeddings)

    handle = model.base.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    model(ids, real, **media)
    handle.remove()
    return found[0], model.position_ids(ids, real, media), real
