"""Loads the parts of a checkpoint; its processor without torchvision where only still images are needed."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .modeling.configuration_diffusionvl import DiffusionVLConfig

VIDEO_REMEDY = "videos need torchvision and qwen-vl-utils; install them with `pip install 'diffusionvl[video]'`"


def _brief(error: Exception) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:300]


def load_config(path: str) -> PreTrainedConfig:
    """Loads the config of an AR or a block-diffusion checkpoint.

    Args:
        path: Checkpoint folder or hub id.

    Raises:
        ValueError: There is no such checkpoint.
    """
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError) as error:  # a value of a wrong type in config.json is a TypeError
        what = "the folder holds" if Path(path).is_dir() else "there is no such folder, and the hub gave"
        raise ValueError(f"{path}: {what} no checkpoint that transformers can read ({_brief(error)})") from error


def load_model(path: str, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """Loads the model of an AR or a block-diffusion checkpoint.

    Args:
        path: Checkpoint folder or hub id.
        dtype: Type of the weights; the checkpoint's own by default.

    Raises:
        ValueError: Weights are broken, missing or of another shape; transformers would fill them with noise.
    """
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(f"{path}: its weights are broken ({error}); copy or save it again") from error
    if info["missing_keys"]:
        raise ValueError(f"{path}: lacks weights such as {min(info['missing_keys'])!r}; copy or save it again")
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise ValueError(f"{path}: {name!r} has shape {[*found]}, its config.json wants {[*expected]}; mend the config")
    return model


def load_processor(path: str) -> ProcessorMixin:
    """Loads the processor of an AR or a block-diffusion checkpoint, padding on the left.

    Processors of recent families carry a video part that needs torchvision. Where torchvision is missing, the
    same processor is loaded with Pillow for images and without its video part.

    Args:
        path: Checkpoint folder or hub id.

    Raises:
        ValueError: There is no such checkpoint, or the model has no processor that transformers knows.
    """
    config = load_config(path)
    model_type = (config.base_config if config.model_type == DiffusionVLConfig.model_type else config).model_type
    if model_type not in PROCESSOR_MAPPING_NAMES:
        raise ValueError(f"{path}: model type {model_type!r} has no processor in transformers; give a VLM checkpoint")
    if is_torchvision_available():
        processor = AutoProcessor.from_pretrained(path)
    else:
        processor_class = without_video(getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type]))
        processor = processor_class.from_pretrained(path, backend="pil")
    processor.tokenizer.padding_side = "left"
    return processor


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor for text and images alone; what it saves, the whole one can load.

    Videos, given to it, raise an ImportError that names the remedy.
    """

    def init(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        processor_class.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def call(self: Any, *args: Any, videos: Any = None, **kwargs: Any) -> BatchFeature:
        if videos is not None:
            raise ImportError(VIDEO_REMEDY)
        return processor_class.__call__(self, *args, **kwargs)

    def save_pretrained(self: Any, save_directory: str, **kwargs: Any) -> None:
        processor_class.save_pretrained(self, save_directory, **kwargs)
        # In this file of its own, the whole processor finds settings for its video part, too.
        self.image_processor.save_pretrained(save_directory)

    # ProcessorMixin reads the parts to load off `__init__`, and writes the class's name into the checkpoint.
    methods = {"__init__": init, "__call__": call, "save_pretrained": save_pretrained}
    return type(processor_class.__name__, (processor_class,), methods)
