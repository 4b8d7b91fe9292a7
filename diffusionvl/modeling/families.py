"""What differs between families of base models, and nothing else. To support a family, this is the file to read.

Legend: A axes of a position (1, or 3 for M-RoPE), B batch, L tokens.
"""

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import UserError

# Families whose image tokens see one another in both directions, as the text after them sees them all.
WHOLE_IMAGE_FAMILIES = ("gemma3",)
# Families that read a whole prompt in both directions.
PREFIX_FAMILIES = ("paligemma",)

FULL, SLIDING = "full_attention", "sliding_attention"  # types of layers, by transformers' names
ATTENTION = ("attention", FULL, SLIDING)  # hybrids with recurrent layers say "attention"


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class that builds a model of this config: one that reads images where there is one, else a text model.

    transformers' Auto classes are looked up here, and not imported above, as importing them registers this package's
    model with them (`diffusionvl/__init__.py`), which needs this file.

    Raises:
        UserError: It is neither.
    """
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    raise UserError(
        f"model type {config.model_type!r} is neither an image-text-to-text model nor a causal language model of "
        "transformers; give one of them"
    )


def cache_input(model_class: type[PreTrainedModel]) -> str:
    """The name of the KV cache in a model's forward: `cache` since transformers 5.24, before that `past_key_values`."""
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


def position_axes(base_config: PreTrainedConfig) -> int:
    """The number of axes of a base's positions: 3 for M-RoPE (Qwen-VL families), 4 for HunYuan-VL's, else 1."""
    rope = getattr(base_config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return len(rope.get("mrope_section") or [0])


def caps_scores(base_config: PreTrainedConfig) -> bool:
    """Whether attention scores are soft-capped (Gemma 2), which SDPA cannot do: such a base attends eagerly."""
    return base_config.get_text_config(decoder=True).to_dict().get("attn_logit_softcapping") is not None


def has_state(model_class: type[PreTrainedModel], text_config: PreTrainedConfig) -> bool:
    """Whether a model keeps a recurrent state along the row (Mamba, linear attention), which no attention mask rules.

    A class of hybrids says so of itself; with attention in all its layers, a model of the class keeps none.
    """
    kinds = text_config.to_dict().get("layer_types") or []
    return model_class._is_stateful and not (kinds and set(kinds) <= {*ATTENTION})


def layer_windows(base_config: PreTrainedConfig) -> dict[str, int | None]:
    """The number of tokens that each type of a base's layers looks back, None for all, by transformers' conventions.

    A base of one type takes one mask for all layers. One of several (Gemma 2 and 3, Qwen with a sliding window) takes
    a mask for each type.

    Returns:
        Windows by the names that the base gives its types.

    Raises:
        UserError: Some layers are not attention that a mask rules, or slide over positions with several axes.
    """
    text = base_config.get_text_config(decoder=True).to_dict()
    window = text.get("sliding_window")
    everywhere = FULL if window is None else SLIDING  # Mistral, Phi-3
    windows = {kind: window if kind == SLIDING else None for kind in text.get("layer_types") or [everywhere]}
    strange = sorted(set(windows) - {*ATTENTION})
    if strange:
        raise UserError(
            f"model type {base_config.model_type!r} has layers of the types {strange}; a block-diffusion mask rules "
            "softmax attention alone"
        )
    if SLIDING in windows and position_axes(base_config) > 1:
        raise UserError(
            f"model type {base_config.model_type!r} has sliding-window layers over multimodal positions, whose "
            "distances do not count tokens; set use_sliding_window=False in its config"
        )
    return windows


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's forward names an input."""
    return name in inspect.signature(model.forward).parameters


def is_token_type(name: str) -> bool:
    """Whether an input says of what kind each token is, which the model reads off the tokens' ids instead."""
    return name.endswith("token_type_ids")


def media_inputs(base: PreTrainedModel) -> frozenset[str]:
    """Names of a base's image and video inputs: what its forward takes beyond what its decoder does.

    They go through the base's vision tower, once. A language model has none.
    """
    if auto_class(base.config) is transformers.AutoModelForCausalLM:
        return frozenset()
    whole, text = (inspect.signature(part.forward).parameters for part in (base, base.get_decoder()))
    of_tokens = {name for name in whole if is_token_type(name)}
    return frozenset(whole.keys() - text.keys() - of_tokens - {"labels", "logits_to_keep"})


def placeholder_ids(base_config: PreTrainedConfig) -> list[int]:
    """Ids that stand for image and video features in a base's input; a family names only those that it has."""
    ids = (getattr(base_config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token_id for token_id in ids if token_id is not None]


def unwritable_ids(model: Any) -> list[int]:
    """Ids that no answer of a block-diffusion model may hold: the mask token and placeholders."""
    return [model.config.mask_token_id, *placeholder_ids(model.base.config)]


def media_by_image(media: dict[str, Any], placeholders: int) -> list[tuple[int, dict[str, Any]]]:
    """Image and video inputs of a prompt, in parts that the base can read one by one.

    Qwen-VL families have the patches of all images in one tensor, and the grid of each. Elsewhere all is one part.

    Args:
        media: The inputs.
        placeholders: Number of image and video tokens in the prompt.

    Returns:
        The number of placeholders of each part, and its inputs.
    """
    if media.keys() == {"pixel_values", "image_grid_thw"}:
        patches, grids = media["pixel_values"], media["image_grid_thw"]
        sizes = grids.prod(-1).tolist()
        each = len(patches) // placeholders  # patches that become one token
        if sum(sizes) == len(patches) == each * placeholders and not any(size % each for size in sizes):
            parts = zip(sizes, patches.split(sizes), grids.split(1), strict=True)
            return [(size // each, {"pixel_values": own, "image_grid_thw": grid}) for size, own, grid in parts]
    return [(placeholders, media)]


def media_types(base_config: PreTrainedConfig, input_ids: Tensor) -> Tensor:
    """0 for text, 1 for image and 2 for video placeholders, as the Qwen-VL rope index wants them. [...]."""
    types = torch.zeros_like(input_ids)
    for kind, token_id in enumerate(placeholder_ids(base_config), start=1):
        types[input_ids == token_id] = kind
    return types


def position_limit(config: PreTrainedConfig) -> int | None:
    """Number of positions that a base's text model knows, by its rope's scaling; None if its config names none."""
    text_config = config.get_text_config(decoder=True)
    known = getattr(text_config, "max_position_embeddings", None)
    if known is None:
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    of_layers = [own for own in rope.values() if isinstance(own, dict)] or [rope]  # some have one a kind of layers
    scaled = [(own.get("original_max_position_embeddings") or 0) * (own.get("factor") or 1) for own in of_layers]
    return max(known, *map(int, scaled))


def native_positions(base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any]) -> Tensor:
    """Positions that the AR base itself gives a row: its M-RoPE index, or 0, 1, 2, ... after the padding.

    Args:
        base: The AR base; only its config is read, so its weights may be on the meta device.
        input_ids: Clean tokens [B, L].
        attention_mask: 1 for tokens, 0 for padding [B, L].
        media: The row's image and video inputs.

    Returns:
        Integer positions [A, B, L].
    """
    input_ids = input_ids.long()  # some processors give 32 bits, which the rope index cannot take
    types = media_types(base.config, input_ids)
    if position_axes(base.config) == 1 or not bool(types.any()):
        return sequential_positions(attention_mask, position_axes(base.config))
    grids = {name: media.get(name) for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")}
    positions, _ = base.model.get_rope_index(
        input_ids,
        mm_token_type_ids=types,
        attention_mask=attention_mask,
        **{name: value for name, value in grids.items() if value is not None},
    )
    return positions


def reads_images_whole(base_config: PreTrainedConfig) -> bool:
    """Whether the tokens of an image see one another in both directions."""
    return base_config.model_type in WHOLE_IMAGE_FAMILIES


def mask_inputs(base_config: PreTrainedConfig, input_ids: Tensor) -> dict[str, Tensor]:
    """What an AR base needs besides the padding [B, L] to build its own mask: which tokens are of an image."""
    return {"token_type_ids": media_types(base_config, input_ids)} if reads_images_whole(base_config) else {}


def deepstack_of_twins(decoder_inputs: dict[str, Any], media_twins: Tensor) -> dict[str, Any]:
    """DeepStack's inputs of a decoder with the features of an image for noisy tokens, too.

    Qwen3-VL adds features of an image not to the embeddings alone but to the first layers' outputs as well, at the
    tokens that a mask marks.

    Args:
        decoder_inputs: What the base gives its decoder.
        media_twins: Noisy tokens and their clean twins, as indices into the flattened batch [2, n].
    """
    mask, features = (decoder_inputs.get(name) for name in ("visual_pos_masks", "deepstack_visual_embeds"))
    if mask is None or features is None:
        return {}
    noisy, clean = media_twins
    marked = mask.flatten().index_fill(0, noisy, True)
    own = mask.flatten().long().cumsum(0) - 1  # which feature a marked token takes
    own = own.index_copy(0, noisy, own[clean])[marked]
    return {"visual_pos_masks": marked.view_as(mask), "deepstack_visual_embeds": [each[own] for each in features]}


def fixed_inputs(base_config: PreTrainedConfig) -> dict[str, Any]:
    """Inputs of a base that are always the same: a mixture of experts is not to compute its balancing loss.

    It would read a block-diffusion mask as padding; the objective is the cross-entropy alone.
    """
    text = base_config.get_text_config(decoder=True).to_dict()
    return {"output_router_logits": False} if "output_router_logits" in text else {}


def sequential_positions(attention_mask: Tensor, axes: int) -> Tensor:
    """Positions 0, 1, 2, ... after the padding, the same on every axis. [B, L] -> [A, B, L]."""
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions.expand(axes, *positions.shape)
