"""What a call gives, sorted and checked: settings, prompts, and inputs for images and videos.

Legend: B prompts, P padded prompt.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .families import MEDIA_INPUTS, TOKEN_TYPE_INPUTS, placeholder_ids
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .sampling_diffusionvl import Generators


def resolve_settings(
    model: Any, config: DiffusionVLGenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[DiffusionVLGenerationConfig, dict[str, Any]]:
    """Splits keyword arguments into settings and media inputs, and checks the settings against the model.

    Args:
        model: The block-diffusion model.
        config: Settings; the model's own `generation_config` if left out, and its special tokens where these settings
            have none.
        kwargs: Settings that differ in this call, and the inputs for images and videos.

    Raises:
        ValueError: A setting is unknown or out of its range.
    """
    own = model.generation_config
    settings = copy.deepcopy(own if config is None else config)
    if not isinstance(settings, DiffusionVLGenerationConfig):
        raise ValueError(f"generation_config must be a DiffusionVLGenerationConfig, got a {type(settings).__name__}")
    settings.update(defaults_only=True, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    known = settings.setting_names
    # The model reads the kind of a token off its id.
    unknown = set(kwargs) - {*known, *MEDIA_INPUTS, *TOKEN_TYPE_INPUTS}
    if unknown:
        raise ValueError(f"generate() does not know {sorted(unknown)}; its settings are {known}")
    settings.update(**{name: value for name, value in kwargs.items() if name in known})
    if settings.pad_token_id is None and settings.eos_token_ids:
        settings.pad_token_id = settings.eos_token_ids[0]
    block_size = model.config.block_size
    if settings.denoising_steps is None:
        settings.denoising_steps = block_size
    if settings.denoising_steps > block_size:
        raise ValueError(f"denoising_steps={settings.denoising_steps} exceeds the block size; give 1 to {block_size}")
    if settings.sub_block_size is None:
        settings.sub_block_size = block_size
    if block_size % settings.sub_block_size:
        raise ValueError(f"sub_block_size={settings.sub_block_size} does not divide the block size {block_size}")
    return settings, {name: kwargs[name] for name in MEDIA_INPUTS if kwargs.get(name) is not None}


def check_prompts(
    model: Any, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any], generator: Generators
) -> None:
    """Checks that prompts [B, P] and what comes with them can be read as they are meant.

    What is wrong with a prompt must not show in a forward, where it would stop the others.

    Raises:
        ValueError: They can not; the message says why and what to do.
    """
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(f"prompts must have the shape [B, P] with a token at least, got {[*input_ids.shape]}")
    if input_ids.is_floating_point():
        raise ValueError(f"prompts must be token ids, got {input_ids.dtype}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {[*attention_mask.shape]}, the prompts have {[*input_ids.shape]}")
    if not bool(attention_mask[:, -1].all()) or bool((attention_mask.long().diff(dim=1) < 0).any()):
        raise ValueError(
            "prompts must be padded on the left, each with a token at least; "
            "set processor.tokenizer.padding_side='left'"
        )
    placeholders = input_ids.new_tensor(placeholder_ids(model.base.config))
    marked = torch.isin(input_ids, placeholders)
    vocabulary = model.base.config.get_text_config(decoder=True).vocab_size
    strange = attention_mask.bool() & ~marked & ((input_ids < 0) | (input_ids >= vocabulary))
    if bool(strange.any()):
        raise ValueError(
            f"the prompts hold the id {int(input_ids[strange][0])}, but the model's vocabulary has {vocabulary}; use "
            "the processor of its own checkpoint"
        )
    if bool(marked.any()) != bool(media):
        given = sorted(media) or "no image or video inputs"
        raise ValueError(
            f"image and video inputs must come with their placeholder tokens {placeholders.tolist()} in the "
            f"prompts, and the other way round; got {given} and {'no placeholders' if media else 'placeholders'}"
        )
    generators = generator if isinstance(generator, Sequence) else [generator] * len(input_ids)
    if len(generators) != len(input_ids):
        raise ValueError(f"{len(generators)} generators for {len(input_ids)} prompts; give one, or one a prompt")
    device = model.get_input_embeddings().weight.device
    for own in generators:
        if own is not None and own.device.type != device.type:
            raise ValueError(
                f"a generator on {own.device} can not draw for a model on {device}; give one of {device.type!r}"
            )


def joinable(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether image and video inputs that were prepared apart can go through one forward."""
    if not first or not second:
        return True
    return first.keys() == second.keys() and all(
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.dtype, one.device, one.shape[1:]) == (other.dtype, other.device, other.shape[1:])
        for one, other in ((first[name], second[name]) for name in first)
    )


def join_media(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Image and video inputs that are `joinable`, as if they had been prepared together."""
    if not first or not second:
        return first or second
    return {name: torch.cat([first[name], second[name]]) for name in first}
