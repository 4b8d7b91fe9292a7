"""The parts of an assembly as their checkpoints hold them: a language model and a vision tower."""

from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.weights import load_weights
from ..modeling.errors import UserError

TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}
DUAL_ENCODERS = ("siglip", "clip")  # a tower with its text side


def load_language_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM and its tokenizer, which must have a chat template.

    Raises:
        UserError: It is something else, broken, or has no chat template.
    """
    checkpoint = Checkpoint(path)
    config = checkpoint.config
    if checkpoint.reads_images:
        raise UserError(
            f"{path}: a {config.model_type!r} model is more than a language model; translate it as it is, or give a "
            "text-only one"
        )
    if config.is_encoder_decoder:
        raise UserError(f"{path}: a {config.model_type!r} model is an encoder and a decoder; give a causal LM")
    tokenizer = checkpoint.processor.tokenizer
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(
            f"{path}: its tokenizer has no chat template, or several; give an instruction-tuned model, or put one into "
            "chat_template.jinja"
        )
    return checkpoint.model(), tokenizer


def load_tower(path: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Loads a vision tower and its image processor, without its last layer and its pooling head.

    Raises:
        UserError: It is not a SigLIP or a CLIP, is broken, or its image processor gives pictures of another size.
    """
    config = Checkpoint(path).config
    config = config.vision_config if config.model_type in DUAL_ENCODERS else config
    if config.model_type not in TOWERS:
        reason = " (NaFlex pictures have a varying number of patches)" if "siglip2" in config.model_type else ""
        raise UserError(
            f"{path}: a {config.model_type!r} model{reason} cannot be the vision tower; give a SigLIP, a SigLIP 2 of "
            "fixed resolution or a CLIP"
        )
    if config.num_hidden_layers < 2:
        raise UserError(f"{path}: the tower has 1 layer, and its last one is left out; give a deeper tower")
    config.num_hidden_layers -= 1
    if is_siglip(config):
        config.vision_use_head = False
    tower = load_weights(TOWERS[config.model_type], path, config=config)
    try:
        image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: holds no image processor; copy its preprocessor_config.json, too") from error
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if {*dict(size).values()} != {config.image_size}:
        raise UserError(
            f"{path}: its image processor makes pictures of size {dict(size)}, its config.json says "
            f"image_size {config.image_size}; mend one of them"
        )
    return tower, image_processor


def is_siglip(vision_config: PreTrainedConfig) -> bool:
    """SigLIP has no class token in front of its patches; CLIP has one."""
    return vision_config.model_type == "siglip_vision_model"


def patches(vision_config: PreTrainedConfig) -> int:
    """Image tokens of one picture or tile."""
    return (vision_config.image_size // vision_config.patch_size) ** 2
