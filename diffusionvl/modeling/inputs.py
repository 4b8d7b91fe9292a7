"""What one call gives, checked: prompts, settings, inputs for images and videos, sources of randomness.

Legend: B prompts, P padded prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import RepetitionPenaltyLogitsProcessor

from .errors import UserError
from .families import is_token_type, media_inputs, placeholder_ids, position_limit
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig, resolve_settings
from .sampling import Generators


@dataclass
class Call:
    """Prompts that arrive together and how they are answered, with nothing left open.

    Attributes:
        input_ids: [B, P].
        attention_mask: Whether each is a token, not padding [B, P].
        positions: [A, B, P].
        most_positions: Number of positions that the model has; None without a limit.
        settings: Settings of all prompts.
        media: Image and video inputs of all prompts, in one piece.
        generators: Source of randomness of each prompt.
        logits_processor: Processors of transformers.
        stopping_criteria: Criteria of transformers.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    most_positions: int | None
    settings: DiffusionVLGenerationConfig
    media: dict[str, Any]
    generators: list[torch.Generator | None]
    logits_processor: list[Any]
    stopping_criteria: list[Any]


def read_call(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    generation_config: Any,
    generator: Generators,
    given: dict[str, Any],
) -> Call:
    """Checks the arguments of `generate` or `Engine.add_batch` and fills in what they leave open.

    What is wrong with a prompt must not show in a forward, where it would stop the others.

    Args:
        model: The block-diffusion model.
        input_ids: [B, P].
        attention_mask: [B, P]; left out, it is inferred from the padding id, as in transformers.
        generation_config: As of `resolve_settings`.
        generator: One for all prompts, or one for each.
        given: All other arguments, by name.

    Raises:
        UserError: They cannot be read as they are meant; the message says why and what to do.
    """
    _check_ids(input_ids)
    of_media = media_inputs(model.base)
    media = {name: value for name, value in given.items() if name in of_media and value is not None}
    # The model reads the kind of a token off its id.
    given = {name: value for name, value in given.items() if name not in of_media and not is_token_type(name)}
    processors, criteria = (_as_list(given, name) for name in ("logits_processor", "stopping_criteria"))
    settings = resolve_settings(model, generation_config, given, input_ids.shape[1])
    if settings.repetition_penalty != 1:
        processors = [RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)), *processors]
    if attention_mask is None:
        attention_mask = infer_mask(input_ids, settings)
    _check_mask(attention_mask, input_ids)
    _check_media(model, input_ids, attention_mask, media)
    generators = _check_generators(model, generator, len(input_ids))
    input_ids = input_ids.long()  # some processors give ids of 32 bits
    try:
        positions = model.position_ids(input_ids, attention_mask, media)
    except (AttributeError, IndexError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise UserError(f"the image and video inputs do not belong to these prompts: {error}") from error
    longest, most = int(positions.max()) + 1, position_limit(model.base.config)
    if most is not None and longest >= most:
        raise UserError(
            f"a prompt takes {longest} positions, and the model has {most} for prompt and answer; shorten it or use "
            "fewer images"
        )
    mask = attention_mask.bool()
    return Call(input_ids, mask, positions, most, settings, media, generators, processors, criteria)


def infer_mask(input_ids: Tensor, settings: DiffusionVLGenerationConfig) -> Tensor:
    """The mask of prompts [B, P] that come without one: padding ids are padding, unless they may end an answer.

    This is transformers' own rule.
    """
    padding = settings.pad_token_id
    if padding is None or padding in settings.eos_token_ids:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return input_ids != padding


def _check_ids(input_ids: Any) -> None:
    if not isinstance(input_ids, Tensor):
        raise UserError(f"prompts must be a tensor of token ids [B, P], got a {type(input_ids).__name__}")
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise UserError(f"prompts must have the shape [B, P] with at least one token, got {[*input_ids.shape]}")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise UserError(f"prompts must be token ids, got {input_ids.dtype}")


def _as_list(given: dict[str, Any], name: str) -> list[Any]:
    """Takes an argument that is one callable, several, or None out of those given."""
    value = given.pop(name, None)
    several = [] if value is None else list(value) if isinstance(value, Sequence) else [value]
    if not all(callable(one) for one in several):
        raise UserError(f"{name} must be a list of callables, got {value!r}")
    return several


def _check_mask(attention_mask: Any, input_ids: Tensor) -> None:
    if not isinstance(attention_mask, Tensor):
        raise UserError(f"attention_mask must be a tensor [B, P], got a {type(attention_mask).__name__}")
    if attention_mask.shape != input_ids.shape:
        raise UserError(f"attention_mask has shape {[*attention_mask.shape]}, the prompts have {[*input_ids.shape]}")
    if not bool(attention_mask[:, -1].all()) or bool((attention_mask.long().diff(dim=1) < 0).any()):
        raise UserError(
            "prompts must be padded on the left, each with at least one token; "
            "set processor.tokenizer.padding_side='left', and give the processor's attention_mask"
        )


def _check_media(model: Any, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any]) -> None:
    """Checks the ids against the vocabulary, and placeholders against image and video inputs."""
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


def _check_generators(model: Any, generator: Any, prompts: int) -> list[torch.Generator | None]:
    """One generator, or None, for each prompt."""
    generators = list(generator) if isinstance(generator, Sequence) else [generator] * prompts
    if len(generators) != prompts:
        raise UserError(f"{len(generators)} generators for {prompts} prompts; give one, or one a prompt")
    device = model.get_input_embeddings().weight.device
    for own in generators:
        if not isinstance(own, torch.Generator | None):
            raise UserError(f"generator must be a torch.Generator, or one for each prompt, got {own!r}")
        if own is not None and own.device.type != device.type:
            raise UserError(
                f"a generator on {own.device} cannot draw for a model on {device}; give one of {device.type!r}"
            )
    return generators
