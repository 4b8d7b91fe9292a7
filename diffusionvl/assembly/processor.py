"""The processor of an assembled model: the LM's tokenizer and chat template, the tower's pixels."""

from importlib.resources import files

from jinja2 import TemplateError
from transformers import (
    BaseImageProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from ..modeling.errors import UserError
from ..modeling.processing_diffusionvl import without_video
from .parts import is_siglip, patches

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"


def build_processor(
    tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor, model: PreTrainedModel
) -> ProcessorMixin:
    """The processor of an assembled model: the LM's tokenizer, and the tower's pixels in whole pictures or tiles."""
    config = model.config
    vision_config = config.vision_config
    tokenizer.chat_template = wrap_chat_template(tokenizer)
    settings = {
        "chat_template": tokenizer.chat_template,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    class_tokens = 0 if is_siglip(vision_config) else 1
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    if config.model_type == "llava_onevision":
        names = ("image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize")
        pixels = {name: getattr(image_processor, name) for name in names}
        return without_video(LlavaOnevisionProcessor)(
            LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
            tokenizer,
            num_image_tokens=patches(vision_config) + class_tokens,
            vision_aspect_ratio=config.vision_aspect_ratio,
            **settings,
        )
    # The whole picture, as the reference takes it: a crop could cut off what is asked about.
    image_processor.size = image_processor.crop_size = size  # a LlavaProcessor counts tokens by the size of a crop
    image_processor.do_center_crop = False
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision_config.patch_size,
        num_additional_image_tokens=class_tokens,
        **settings,
    )


def wrap_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The LM's own chat template after a few lines that write content parts as text.

    Raises:
        UserError: The LM's template does not take a user turn, or loses its text.
    """
    lines = files("diffusionvl.assembly").joinpath("content_parts.jinja").read_text(encoding="utf-8")
    template = lines.replace("IMAGE_TOKEN", IMAGE_TOKEN) + tokenizer.chat_template
    question = "What is in it?"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the language model's chat template refuses a user turn: {error}; give another one") from error
    if text.count(f"{IMAGE_TOKEN}\n{question}") != 1 or text.count(IMAGE_TOKEN) != 1:
        raise UserError(
            f"the language model's chat template writes {text!r} for an image and {question!r}; give one that writes "
            "what a user says, once"
        )
    return template
