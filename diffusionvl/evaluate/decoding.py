"""One batch of answers with what they cost, from an AR or a block-diffusion model alike.

Legend: B batch, P padded prompt, G generated tokens.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer

from diffusionvl.modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration

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


def encode(processor: ProcessorMixin, texts: Sequence[str], images: Sequence[Any]) -> BatchFeature:
    """Prompts that the chat template has written, as a batch [B, P] padded on the left.

    Args:
        processor: The model's, padding on the left.
        texts: B prompts with the placeholders of their images.
        images: Of all prompts in their order; or one list for each prompt, which every family of models understands.
    """
    # The template has written every special token.
    options: dict[str, Any] = {
        "text": list(texts),
        "return_tensors": "pt",
        "padding": True,
        "add_special_tokens": False,
    }
    return processor(images=images, **options) if images else processor(**options)


def on_model(inputs: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs on the model's device; pictures in the type of its weights."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def generate(model: PreTrainedModel, inputs: Mapping[str, Tensor], **settings: Any) -> Generated:
    """Answers a batch: an AR model greedily with a KV cache, a block-diffusion model by its own settings.

    Args:
        model: Of either kind, in eval mode.
        inputs: What `encode` returned.
        **settings: Of the model's `generate`.
    """
    inputs = on_model(inputs, model)
    prompt_length = inputs["input_ids"].shape[1]
    diffusion = kind_of(model) == BLOCK_DIFFUSION
    if not diffusion:
        settings = {"do_sample": False, "use_cache": True, **settings}
    first = FirstTokens()
    output: Any = model.generate(**inputs, return_dict_in_generate=True, streamer=first, **settings)
    new = output.sequences[:, prompt_length:].cpu()  # also waits for the device
    seconds = time.perf_counter() - first.start
    lengths = answer_lengths(new, model)
    # An AR model's prefill gives the first token, so its forwards are its tokens.
    return Generated(new, lengths, output.forwards.cpu() if diffusion else lengths, seconds, first.seconds or seconds)


def answer_lengths(new: Tensor, model: PreTrainedModel) -> Tensor:
    """Tokens of each answer [B] up to and with its end of sequence, of generated ids [B, G]."""
    eos = model.generation_config.eos_token_id
    ends = torch.isin(new, torch.tensor([eos] if isinstance(eos, int) else eos or []))
    return torch.where(ends.any(-1), ends.long().argmax(-1) + 1, new.shape[1])
