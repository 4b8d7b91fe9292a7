"""One batch of answers with what they cost, from an AR or a block-diffusion model alike.

Legend: B batch, P padded prompt, G generated tokens.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration

AR, BLOCK_DIFFUSION = "ar", "block_diffusion"


class Generated(NamedTuple):
    """Answers of a batch.

    Attributes:
        new: Generated ids [B, G].
        lengths: Tokens of each answer, its end of sequence included [B].
        forwards: That each row took part in [B].
        seconds: Inside `generate`.
        first_seconds: Of these, until the first tokens were out: an AR model's first one, or the first block.
    """

    new: Tensor
    lengths: Tensor
    forwards: Tensor
    seconds: float
    first_seconds: float


class FirstTokens(BaseStreamer):
    """A streamer that notes when the first tokens behind the prompt come out."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: float | None = None
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, then tokens."""
        if self.prompt_seen and self.seconds is None:
            self.seconds = time.perf_counter() - self.start
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing is left to do."""


def kind_of(model: PreTrainedModel) -> str:
    """`block_diffusion`, or `ar` for any other model."""
    return BLOCK_DIFFUSION if isinstance(model, DiffusionVLForConditionalGeneration) else AR


def on_model(inputs: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs on the model's device; pictures in the type of its weights."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    until: Sequence[str] = (),
    tokenizer: Any = None,
    **settings: Any,
) -> Generated:
    """Answers a batch: an AR model greedily with a KV cache, a block-diffusion model by its own settings.

    Args:
        model: Of either kind, in eval mode.
        inputs: What `data.prompts.encode` returned.
        until: Texts that end an answer; the tokens that hold them belong to it.
        tokenizer: Needed beside `until`.
        **settings: Of the model's `generate`.
    """
    inputs = on_model(inputs, model)
    prompt_length = inputs["input_ids"].shape[1]
    diffusion = kind_of(model) == BLOCK_DIFFUSION
    if not diffusion:
        settings = {"do_sample": False, "use_cache": True, **settings}
    if until:
        settings |= {"stop_strings": list(until), "tokenizer": tokenizer}
    first = FirstTokens()
    output: Any = model.generate(**inputs, return_dict_in_generate=True, streamer=first, **settings)
    new = output.sequences[:, prompt_length:].cpu()  # also waits for the device
    seconds = time.perf_counter() - first.start
    if diffusion:
        forwards = output.forwards.cpu()
        lengths = (output.tokens_per_forward.cpu() * forwards).round().long()
    else:  # its prefill gives the first token, so its forwards are its tokens
        forwards = lengths = answer_lengths(new, model)
    return Generated(new, lengths, forwards, seconds, first.seconds or seconds)


def answer_lengths(new: Tensor, model: PreTrainedModel) -> Tensor:
    """Tokens of each AR answer [B] with its end of sequence, without the padding behind it, of generated ids [B, G]."""
    config = model.generation_config
    eos = torch.tensor([config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id or [])
    ended = torch.isin(new, eos)
    over = ended | (new == config.pad_token_id if config.pad_token_id is not None else ended)
    first = over.long().argmax(-1)
    # An answer that a text has ended has padding, but no end of sequence.
    with_end = first + ended.gather(-1, first[:, None])[:, 0]
    return torch.where(over.any(-1), with_end, new.shape[1])
