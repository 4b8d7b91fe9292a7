"""Which AR bases can be translated, and why the others cannot.

A base has to compute what its mask and its positions say, and nothing else: no state that runs along the row, no
second stack that reads the prompt, no distances of its own. What a config or a class tells is told before the weights
are loaded; then a few tokens and a picture through the model prove the rest.
"""

import copy
import inspect

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
    ProcessorMixin,
)

from ..data.conversation import SMALLEST
from ..data.prompts import encode, question
from ..modeling.block_grid import row_blocks
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import (
    cache_input,
    is_token_type,
    layer_windows,
    media_types,
    native_positions,
    placeholder_ids,
    position_axes,
    sequential_positions,
)
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration

NEEDED_INPUTS = ("attention_mask", "position_ids", "logits_to_keep")
FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)  # of a forward that cannot run


def check_config(config: PreTrainedConfig, base: str) -> None:
    """Refuses a base that cannot work, by its config and its class.

    Args:
        config: The base's config.
        base: Its name, for the message.

    Raises:
        UserError: Naming the reason.
    """
    reason = _reason(config)
    if reason is not None:
        raise UserError(f"{base}: model type {config.model_type!r} cannot be translated: {reason}")
    try:
        layer_windows(config)
    except ValueError as error:
        raise UserError(f"{base}: cannot be translated: {error}") from error


def _reason(config: PreTrainedConfig) -> str | None:
    """Why a config's model cannot be translated, or None."""
    text_config = config.get_text_config(decoder=True)
    if isinstance(config, DiffusionVLConfig):
        return "it is a block-diffusion checkpoint already; give the AR model it came from"
    if config.is_encoder_decoder or text_config.is_encoder_decoder:
        return "it is an encoder-decoder, whose prompt is not in the row that is cut into blocks"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return "it is an encoder, which was not trained to go on with a text"
    mappings = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    quantization = config.to_dict().get("quantization_config")
    if quantization is not None:
        return f"its weights are quantised ({quantization.get('quant_method')}); give the model they are of"
    classes = [mapping[type(part)] for mapping in mappings for part in (config, text_config) if type(part) in mapping]
    if not classes:
        return "transformers has no causal language model and no image-text-to-text model of this type"
    if any(model_class._is_stateful for model_class in classes):
        return "it keeps a recurrent state (Mamba, linear attention), which no attention mask rules"
    inputs = inspect.signature(classes[0].forward).parameters
    if "cross_attention_mask" in inputs:
        return "it reads images by cross-attention, which a block-diffusion mask does not rule"
    missing = [name for name in (*NEEDED_INPUTS, cache_input(classes[0])) if name not in inputs]
    if missing:
        return f"its forward takes no {missing[0]}, so what a token sees cannot be set"
    return None


def check_model(model: DiffusionVLForConditionalGeneration, base: str) -> None:
    """Runs a few tokens through a translated base: its mask and its positions must be all that rules a row.

    Args:
        model: The translated model; any weights will do.
        base: Its name, for the message.

    Raises:
        UserError: Blocks of one token are not the base's own causal forward, a noisy block behind a clean stream is
            not that block in its place, or no token sees those behind it in its block.
    """
    refused = f"{base}: model type {model.base.config.model_type!r} cannot be translated"
    try:
        causal, noisy, ahead = _errors(model)
    except FAILURES as error:
        raise UserError(f"{refused}: its forward fails on a row of clean and noisy tokens ({error})") from error
    if max(causal, noisy) > tolerance(model):
        raise UserError(
            f"{refused}: its layers see other tokens, or at other distances, than the mask and the positions say "
            f"(logits differ by {causal:.1%} in a causal row, by {noisy:.1%} in a noisy block)"
        )
    if ahead == 0:
        raise UserError(f"{refused}: its layers look back alone, whatever the mask says")


def check_images(model: DiffusionVLForConditionalGeneration, processor: ProcessorMixin, base: str) -> None:
    """Runs a picture through a translated base: in blocks of one token, text must see it as the base's own does.

    Args:
        model: The translated model; any weights will do.
        processor: Its processor.
        base: Its name, for the message.

    Raises:
        UserError: It does not, or the processor and the model do not take a picture.
    """
    refused = f"{base}: model type {model.base.config.model_type!r} cannot be translated"
    try:
        difference = _image_error(model, processor)
    except FAILURES as error:
        raise UserError(f"{refused}: it fails on a picture in front of a question ({error})") from error
    if difference > tolerance(model):
        raise UserError(
            f"{refused}: text sees a picture in front of it in another way than the mask and the positions say (logits "
            f"differ by {difference:.1%})"
        )


def tolerance(model: DiffusionVLForConditionalGeneration) -> float:
    """Rounding in bf16 moves logits by some percent, another token in sight moves them by their own size."""
    return 1e-3 if model.dtype == torch.float32 else 0.2


def _image_error(model: DiffusionVLForConditionalGeneration, processor: ProcessorMixin) -> float:
    """How far logits of text behind a picture are from the base's own."""
    shown = question("what is it?", [Image.new("RGB", SMALLEST, "white")])
    inputs = encode(processor, [shown]).to(model.device, model.dtype)
    media = {name: value for name, value in inputs.items() if name != "input_ids" and not is_token_type(name)}
    ids, mask = inputs["input_ids"], media.pop("attention_mask")
    of_images = media_types(model.base.config, ids)[0].nonzero()[:, 0]
    if not len(of_images):
        raise UserError("the chat template writes no place for it")
    config = copy.copy(model.config)
    config.block_size = 1
    behind = ids.shape[1] - 1 - int(of_images[-1])
    with torch.no_grad():
        own = model.base(**inputs, logits_to_keep=behind).logits
        found = model(
            ids,
            block_ids=row_blocks(config, ids[0])[None],
            position_ids=native_positions(model.base, ids, mask, media),
            logits_to_keep=behind,
            **media,
        ).logits
    return _error(found, own)


def _errors(model: DiffusionVLForConditionalGeneration, size: int = 4) -> tuple[float, float, float]:
    """How far logits are apart that should be the same, in a causal row and a noisy block; and that should not be."""
    config, device = model.base.config, model.device
    ids = torch.arange(model.base.get_input_embeddings().num_embeddings)
    ids = ids[~torch.isin(ids, torch.tensor([model.config.mask_token_id, *placeholder_ids(config)]))]
    # From all over the vocabulary: the last rows of the embeddings often belong to no token, and are all the same.
    ids = ids[:: len(ids) // (3 * size)][: 3 * size]
    first, second, other = ids.to(device)[None].split(size, dim=1)
    tokens = torch.arange(2 * size, device=device)[None]
    noisy_stream = torch.cat([torch.zeros_like(tokens), torch.ones_like(other)], dim=1)
    positions = sequential_positions(torch.ones_like(tokens), position_axes(config))
    row = torch.cat([first, second], dim=1)
    with torch.no_grad():
        own = model.base(input_ids=row).logits
        single = model(row, block_ids=tokens).logits
        in_place = model(torch.cat([first, other], dim=1), block_ids=tokens // size).logits
        behind = model(
            torch.cat([row, other], dim=1),
            block_ids=torch.cat([tokens, tokens[:, size:]], dim=1) // size,
            stream_ids=noisy_stream,
            position_ids=torch.cat([positions, positions[..., size:]], dim=-1),
        ).logits
    return (
        _error(single, own),
        _error(behind[:, 2 * size :], in_place[:, size:]),
        _error(single[:, :1], in_place[:, :1]),
    )


def _error(found: Tensor, expected: Tensor) -> float:
    """How far logits are from what they should be, relative to their spread; of the token in the middle."""
    found, expected = found.float(), expected.float()
    scale = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-6)
    return float(((found - expected).norm(dim=-1) / scale).median())
