"""What a call gives, sorted and checked: settings, prompts, and inputs for images and videos.

Legend: B prompts, P padded prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .families import placeholder_ids
from .sampling import Generators


def check_prompts(
    model: Any, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any], generator: Generators
) -> None:
    """Checks that prompts [B, P] and what comes with them can be read as they are meant.

    What is wrong with a prompt must not show in a forward, where it would stop the others.

    Raises:
        UserError: They cannot; the message says why and what to do.
    """
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise UserError(f"prompts must have the shape [B, P] with a token at least, got {[*input_ids.shape]}")
    if input_ids.is_floating_point():
        raise UserError(f"prompts must be token ids, got {input_ids.dtype}")
    if attention_mask.shape != input_ids.shape:
        raise UserError(f"attention_mask has shape {[*attention_mask.shape]}, the prompts have {[*input_ids.shape]}")
    if not bool(attention_mask[:, -1].all()) or bool((attention_mask.long().diff(dim=1) < 0).any()):
        raise UserError(
            "prompts must be padded on the left, each with a token at least; "
            "set processor.tokenizer.padding_side='left'"
        )
    placeholders = input_ids.new_tensor(placeholder_ids(model.base.config))
    marked = torch.isin(input_ids, placeholders)
    vocabulary = model.base.config.get_text_config(decoder=True).vocab_size
    strange = attention_mask.bool() & ~marked & ((input_ids < 0) | (input_ids >= vocabulary))
    if bool(strange.any()):
        raise UserError(
            f"the prompts hold the id {int(input_ids[strange][0])}, but the model's vocabulary has {vocabulary}; use "
            "the processor of its own checkpoint"
        )
    if bool(marked.any()) != bool(media):
        given = sorted(media) or "no image or video inputs"
        raise UserError(
            f"image and video inputs must come with their placeholder tokens {placeholders.tolist()} in the "
            f"prompts, and the other way round; got {given} and {'no placeholders' if media else 'placeholders'}"
        )
    generators = generator if isinstance(generator, Sequence) else [generator] * len(input_ids)
    if len(generators) != len(input_ids):
        raise UserError(f"{len(generators)} generators for {len(input_ids)} prompts; give one, or one a prompt")
    device = model.get_input_embeddings().weight.device
    for own in generators:
        if own is not None and own.device.type != device.type:
            raise UserError(
                f"a generator on {own.device} cannot draw for a model on {device}; give one of {device.type!r}"
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
