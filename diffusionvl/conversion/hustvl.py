"""The reference's checkpoints (hustvl/DiffusionVL) as ours, and ours as the reference's.

Two layouts: Qwen2.5-VL (3B with tied embeddings, 7B), and Qwen2.5-7B with SigLIP 2, a LLaVA-OneVision by its parts.
Weights are renamed, never changed. What the reference does, and this package can do otherwise, is set: positions 0, 1,
2, ..., blocks from index 0, pictures without tokens around them, and its prompt.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    LlavaOnevisionProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..checkpoints.checkpoint import Checkpoint
from ..data.chat_template import response_header_ids
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from ..modeling.processing_diffusionvl import without_video
from .hustvl_config import (
    END_OF_TURN,
    IMAGE_TOKEN,
    PADDING,
    PIXELS,
    VIDEO_TOKEN,
    build_base_config,
    kept_settings,
    read_settings,
    reference_settings,
)
from .weights import empty_model, load_renamed, read_weights, rename_weights

MASK_TOKEN_ID = 151671  # a constant of the reference's code: a row of the embeddings that no token uses
MODEL_TYPES = ("qwen2_5_vl", "llava_onevision")
# Beginnings of a stock model's names and of the reference's; the first that fits is taken.
QWEN_NAMES = {
    "model.visual.merger.": "model.mm_projector.merger.",
    "model.visual.": "model.vision_tower.vision_tower.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
SIGLIP_NAMES = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.image_newline": "model.image_newline",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}


def convert_hustvl(
    folder: str, mask_token_id: int = MASK_TOKEN_ID
) -> tuple[DiffusionVLForConditionalGeneration, ProcessorMixin]:
    """Reads a checkpoint of the reference, trained or released.

    Args:
        folder: Folder with the checkpoint's files, as on the hub; its remote code is not run.
        mask_token_id: The row of the embeddings that stands for a masked token.

    Returns:
        The block-diffusion model and its processor.

    Raises:
        UserError: A file, a setting or a weight is missing, left over, or of another shape or type.
    """
    settings = read_settings(Path(folder))
    tokenizer = read_tokenizer(folder)
    try:
        base_config = build_base_config(settings, tokenizer)
    except StrictDataclassError as error:
        raise UserError(f"{folder}/config.json: {error}; copy it from the hub again") from error
    rows = base_config.text_config.vocab_size
    if not 0 <= mask_token_id < rows:
        raise UserError(f"{folder}: the mask token {mask_token_id} has no row among its {rows} embeddings")
    names = {theirs: ours for ours, theirs in reference_names(base_config).items()}
    weights = rename_weights(read_weights(Path(folder)), names, base_config, folder, "DiffusionVL")
    processor = build_processor(settings, base_config, tokenizer)
    config = DiffusionVLConfig(
        base_config,
        block_size=settings["bd3lm_block_size"],
        mask_token_id=mask_token_id,
        position_mode="sequential",
        block_origin="absolute",
        response_header_ids=response_header_ids(processor),
        base_model_name_or_path=_ar_base(base_config),
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TURN),
        pad_token_id=tokenizer.convert_tokens_to_ids(PADDING),
        dtype=base_config.dtype,
        reference=kept_settings(settings),
    )
    base = load_renamed(base_config, weights)
    return DiffusionVLForConditionalGeneration(config, base).eval(), processor


def convert_to_reference(
    folder: str, out: str, mask_token_id: int = MASK_TOKEN_ID, max_shard_size: str = "5GB"
) -> None:
    """Writes a block-diffusion checkpoint as the reference would.

    Args:
        folder: Folder of the checkpoint.
        out: New folder.
        mask_token_id: The mask token that the reference's code has.
        max_shard_size: Most bytes of a file of weights.

    Raises:
        UserError: The reference has no such model, or would decode it in another way.
    """
    checkpoint = Checkpoint(folder)
    check_like_reference(checkpoint.config, folder, mask_token_id)
    model, processor = checkpoint.model(), checkpoint.processor
    weights = model.base.state_dict()
    renamed = {theirs: weights[ours] for ours, theirs in reference_names(model.base.config).items()}
    save_torch_state_dict(renamed, out, max_shard_size=max_shard_size)
    settings = reference_settings(model.config, dict(processor.image_processor.size))
    Path(out, "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    processor.tokenizer.save_pretrained(out)


def check_like_reference(config: PreTrainedConfig, folder: str, mask_token_id: int) -> None:
    """Checks that the reference's code does with a model what ours does.

    Raises:
        UserError: It does not.
    """
    if not isinstance(config, DiffusionVLConfig) or config.base_config.model_type not in MODEL_TYPES:
        base = config.base_config if isinstance(config, DiffusionVLConfig) else config
        raise UserError(
            f"{folder}: the reference has block-diffusion models of {MODEL_TYPES}, this is a {base.model_type!r} "
            f"model of type {config.model_type!r}"
        )
    wanted = {
        "position_mode": "sequential",
        "block_origin": "absolute",
        "clean_attention": "block",
        "mask_token_id": mask_token_id,
    }
    found = {name: vars(config)[name] for name in wanted}
    if found != wanted:
        raise UserError(f"{folder}: has {found}, but the reference's code has {wanted} and would decode it otherwise")


def reference_names(base_config: PreTrainedConfig) -> dict[str, str]:
    """The reference's name of each of a stock model's weights; of tied embeddings there is one."""
    beginnings = QWEN_NAMES if base_config.model_type == "qwen2_5_vl" else SIGLIP_NAMES
    names = {}
    for name in empty_model(base_config).state_dict():
        if name != "lm_head.weight" or not base_config.tie_word_embeddings:
            ours = next(beginning for beginning in beginnings if name.startswith(beginning))
            names[name] = beginnings[ours] + name.removeprefix(ours)
    return names


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer with the reference's prompt as chat template.

    Raises:
        UserError: It is missing, or lacks a token of Qwen2.5's.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: holds no tokenizer ({error}); copy its tokenizer.json, too") from error
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (END_OF_TURN, PADDING, IMAGE_TOKEN, VIDEO_TOKEN) if token not in vocabulary]
    if missing:
        raise UserError(f"{folder}: its tokenizer lacks {missing}; copy Qwen2.5's")
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = END_OF_TURN, PADDING, "left"
    template = files("diffusionvl.conversion").joinpath("hustvl_chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.chat_template = template.rstrip("\n").replace("IMAGE_TOKEN", IMAGE_TOKEN)
    return tokenizer


def build_processor(
    settings: dict[str, Any], base_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> ProcessorMixin:
    """The processor of a converted checkpoint: pictures keep their shape, as in the reference's evaluation."""
    vision, template = base_config.vision_config, {"chat_template": tokenizer.chat_template}
    if base_config.model_type == "qwen2_5_vl":
        least, most = (settings.get(name) or usual for name, usual in PIXELS.items())
        image_processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": least, "longest_edge": most},
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )
        return without_video(Qwen2_5_VLProcessor)(image_processor, tokenizer, **template)
    half = [0.5, 0.5, 0.5]
    tiles = LlavaOnevisionImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size},
        image_grid_pinpoints=base_config.image_grid_pinpoints,
        image_mean=half,
        image_std=half,
    )
    return without_video(LlavaOnevisionProcessor)(
        tiles,
        tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=base_config.vision_aspect_ratio,
        image_token=IMAGE_TOKEN,
        video_token=VIDEO_TOKEN,
        **template,
    )


def _ar_base(base_config: PreTrainedConfig) -> str:
    """The AR model that a release was made from, for the model card; of Qwen2.5-VL, the 3B one has tied embeddings."""
    if base_config.model_type == "llava_onevision":
        return "Qwen/Qwen2.5-7B-Instruct"
    return f"Qwen/Qwen2.5-VL-{'3B' if base_config.tie_word_embeddings else '7B'}-Instruct"
