"""`config.json` of the reference's checkpoints (hustvl/DiffusionVL): read into stock configs, and written from them."""

import json
from pathlib import Path
from typing import Any

from transformers import LlavaOnevisionConfig, PreTrainedConfig, PreTrainedTokenizerBase, Qwen2_5_VLConfig

from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
END_OF_TURN, PADDING = "<|im_end|>", "<|endoftext|>"
REQUIRED = ("enable_bd3lm", "bd3lm_block_size", "mm_projector_type")
MERGER, MLP = "qwen_merger", "mlp2x_gelu"  # projectors: of Qwen2.5-VL, and of SigLIP 2
PIXELS = {"min_pixels": 384**2, "max_pixels": 512**2}  # the reference writes them at the end of a training only
# What a checkpoint says that was not the reference's before; these are the settings of the released ones.
COMMON = {
    "bd3lm_antithetic_sampling": True,
    "bd3lm_sampling_eps_min": 1e-3,
    "bd3lm_sampling_eps_max": 1.0,
    "bd3lm_block_aligned_eos": True,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "tokenizer_padding_side": "right",
    "tokenizer_model_max_length": 8192,
    "model_max_length": 8192,
}
QWEN = {
    "model_type": "diffusionvl_qwenvl",
    "image_aspect_ratio": "pad",
    "mm_patch_merge_type": "flat",
    "mm_vision_tower": "Qwen/Qwen2.5-VL-7B-Instruct",
}
SIGLIP = {
    "model_type": "diffusionvl_qwen",
    "image_aspect_ratio": "anyres_max_4",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_newline_position": "grid",
    "mm_vision_tower": "google/siglip2-so400m-patch14-384",
}
KEPT = ("mm_", "bd3lm_", "tokenizer_", "image_", "model_type", "model_max_length", "architectures")
TEXT_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
TEXT = (*TEXT_REQUIRED, "hidden_act", "initializer_range", "attention_dropout", "use_sliding_window", "rope_scaling")
QWEN_VISION = (
    "depth",
    "fullatt_block_indexes",
    "hidden_act",
    "hidden_size",
    "in_channels",
    "initializer_range",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "tokens_per_second",
    "window_size",
)
# The reference's code builds SigLIP 2 (so400m, patch 14, 384) without asking a config.
SIGLIP_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads `config.json`, as data: its remote code is not run.

    Raises:
        UserError: It is missing or broken, or is none of the reference's.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the folder of a DiffusionVL checkpoint") from error
    required = [name for name in REQUIRED if not isinstance(settings, dict) or settings.get(name) is None]
    for name in ("text_config", "vision_config"):
        if not required and not isinstance(settings.get(name) or {}, dict):
            raise UserError(f"{path}: {name} is {settings[name]!r}, not a config; copy it from the hub again")
    text = {} if required else settings.get("text_config") or settings
    missing = required or [name for name in TEXT_REQUIRED if text.get(name) is None]
    if missing:
        raise UserError(f"{path}: lacks {missing}; give the folder of a checkpoint of hustvl/DiffusionVL")
    if settings["enable_bd3lm"] is not True:
        raise UserError(f"{path}: enable_bd3lm is {settings['enable_bd3lm']}, so it was not trained by block diffusion")
    if settings["mm_projector_type"] not in (MERGER, MLP):
        raise UserError(f"{path}: mm_projector_type is {settings['mm_projector_type']!r}, not {MERGER!r} or {MLP!r}")
    if settings["mm_projector_type"] == MERGER and not settings.get("vision_config"):
        raise UserError(f"{path}: lacks ['vision_config']; copy it from the hub again")
    least, most = (settings.get(name) or usual for name, usual in PIXELS.items())
    if not isinstance(least, int) or not isinstance(most, int) or not 0 < least <= most:
        raise UserError(f"{path}: min_pixels {least!r} and max_pixels {most!r} are not numbers of pixels; mend them")
    return settings


def build_base_config(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config of the stock model with these weights: Qwen2.5-VL, or LLaVA-OneVision for SigLIP 2.

    Raises:
        UserError: The pictures are cut in a way that a LLaVA-OneVision does not know.
    """
    source = settings.get("text_config") or settings
    text = {name: source[name] for name in TEXT if source.get(name) is not None}
    ends = {"eos_token_id": tokenizer.convert_tokens_to_ids(END_OF_TURN), "bos_token_id": None}
    text |= {**ends, "pad_token_id": tokenizer.convert_tokens_to_ids(PADDING)}
    tied = {"tie_word_embeddings": bool(settings.get("tie_word_embeddings", source.get("tie_word_embeddings", False)))}
    image, video = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])
    if settings["mm_projector_type"] == MERGER:
        start, end = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
        given = settings["vision_config"]
        return Qwen2_5_VLConfig(
            text_config={**text, **tied},
            vision_config={name: given[name] for name in QWEN_VISION if name in given},
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
            **tied,
        )
    vision = {**SIGLIP_VISION, **(settings.get("vision_config") or {})}
    vision = {name: vision[name] for name in SIGLIP_VISION}
    vision["num_hidden_layers"] -= 1  # the reference takes the last layer off
    aspect = settings.get("image_aspect_ratio", SIGLIP["image_aspect_ratio"])
    if not str(aspect).startswith("anyres_max_"):
        raise UserError(f"image_aspect_ratio is {aspect!r} in config.json; only anyres_max_N can be converted")
    return LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text, **tied},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        image_token_index=image,
        video_token_index=video,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        image_grid_pinpoints=_pinpoints(settings.get("image_grid_pinpoints"), vision["image_size"]),
        **tied,
    )


def _pinpoints(given: Any, side: int) -> list[list[int]]:
    """Sizes [height, width] of the grid; the reference writes (width, height), or its 6 x 6 tiles in words."""
    if isinstance(given, list):
        return [[height, width] for width, height in given]
    return [[side * rows, side * columns] for rows in range(1, 7) for columns in range(1, 7)]


def kept_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What the reference alone reads, to be written back."""
    return {name: value for name, value in settings.items() if name.startswith(KEPT)}


def reference_settings(config: DiffusionVLConfig, size: dict[str, int]) -> dict[str, Any]:
    """The reference's `config.json` of a block-diffusion model.

    Args:
        config: Config of the model.
        size: Its image processor's `size`.
    """
    base = config.base_config
    qwen = base.model_type == "qwen2_5_vl"
    text = base.text_config.to_dict()
    rope = text.get("rope_parameters") or {}
    sections = rope.get("mrope_section")
    # As transformers 4 wrote it, which the reference runs on.
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = sections and {"mrope_section": sections, "rope_type": "default", "type": "default"}
    text = {name: text.get(name) for name in TEXT} | {
        "eos_token_id": config.end_of_turn_ids[0],
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": base.tie_word_embeddings,
    }
    vision = base.vision_config.to_dict()
    if qwen:
        vision = {"model_type": "qwen2_5_vl", **{name: vision[name] for name in QWEN_VISION}}
        own = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"], "mm_projector_type": MERGER}
        own["text_config"] = {"model_type": "qwen2_5_vl_text", **text}
    else:
        vision = {name: vision[name] for name in SIGLIP_VISION}
        vision["num_hidden_layers"] += 1
        own = {"image_grid_pinpoints": [[width, height] for height, width in base.image_grid_pinpoints]}
        own |= {"image_aspect_ratio": base.vision_aspect_ratio, "mm_projector_type": MLP}
    return {
        **COMMON,
        **(QWEN if qwen else SIGLIP),
        "mm_hidden_size": vision["hidden_size"],
        **vars(config).get("reference", {}),
        **text,
        **own,
        "vision_config": vision,
        "enable_bd3lm": True,
        "bd3lm_block_size": config.block_size,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
    }
