"""Loads a model's processor, without torchvision where only still images are needed."""

from typing import Any

import transformers
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .modeling import DiffusionVLConfig

VIDEO_REMEDY = "videos need torchvision and qwen-vl-utils; install them with `pip install 'diffusionvl[video]'`"


def load_processor(path: str) -> ProcessorMixin:
    """Loads the processor of an AR or a block-diffusion checkpoint, padding on the left.

    Processors of recent families carry a video part that needs torchvision. Where torchvision is missing, the
    same processor is loaded with Pillow for images and without its video part.

    Args:
        path: Checkpoint folder or hub id.

    Raises:
        ValueError: The model has no processor that transformers knows.
    """
    config = AutoConfig.from_pretrained(path)
    model_type = (config.base_config if config.model_type == DiffusionVLConfig.model_type else config).model_type
    if model_type not in PROCESSOR_MAPPING_NAMES:
        raise ValueError(f"{path}: model type {model_type!r} has no processor in transformers; give a VLM checkpoint")
    if is_torchvision_available():
        processor = AutoProcessor.from_pretrained(path)
    else:
        processor = without_video(getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])).from_pretrained(
            path, backend="pil"
        )
    processor.tokenizer.padding_side = "left"
    return processor


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor for text and images alone; saved, it is the same checkpoint as the whole one."""

    def init(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        processor_class.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)

    # ProcessorMixin reads the parts to load off this signature, and writes the class's name into the checkpoint.
    return type(processor_class.__name__, (processor_class,), {"__init__": init})


def require_video() -> None:
    """Raises an error that names the remedy if videos can not be read.

    Raises:
        ImportError: torchvision or qwen-vl-utils is missing.
    """
    try:
        import qwen_vl_utils  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{VIDEO_REMEDY} (missing: {error.name})") from error
    if not is_torchvision_available():
        raise ImportError(VIDEO_REMEDY)
