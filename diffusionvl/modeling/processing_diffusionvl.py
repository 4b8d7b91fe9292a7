"""Processors where torchvision is missing: the stock ones, with Pillow for images and without their video part."""

from typing import Any

import transformers
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import is_torchvision_available

from .configuration_diffusionvl import DiffusionVLConfig

VIDEO_REMEDY = "videos need torchvision and qwen-vl-utils; install them with `pip install 'diffusionvl[video]'`"


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor for text and images alone; what it saves, the whole one can load.

    Videos, given to it, raise an ImportError that names the remedy.
    """

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in processor_class.get_attributes() if name != "video_processor"]

    def from_args_and_dict(cls: Any, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> ProcessorMixin:
        if "video_processor" in processor_class.get_attributes():  # `__init__` still wants one
            args.insert(processor_class.get_attributes().index("video_processor"), None)
        return processor_class.from_args_and_dict.__func__(cls, args, processor_dict, **kwargs)

    def call(self: Any, *args: Any, videos: Any = None, **kwargs: Any) -> BatchFeature:
        if videos is not None:
            raise ImportError(VIDEO_REMEDY)
        return processor_class.__call__(self, *args, **kwargs)

    def save_pretrained(self: Any, save_directory: str, **kwargs: Any) -> None:
        processor_class.save_pretrained(self, save_directory, **kwargs)
        # In this file of its own, the whole processor finds settings for its video part, too.
        self.image_processor.save_pretrained(save_directory)

    # ProcessorMixin loads the parts that `get_attributes` names, and writes the class's name into the checkpoint.
    methods = {
        "get_attributes": classmethod(get_attributes),
        "from_args_and_dict": classmethod(from_args_and_dict),
        "__call__": call,
        "apply_chat_template": ProcessorMixin.apply_chat_template,  # SmolVLM's own asks the video part
        "save_pretrained": save_pretrained,
    }
    return type(processor_class.__name__, (processor_class,), methods)


class DiffusionVLProcessor(ProcessorMixin):
    """What `AutoProcessor` finds in the folder of a block-diffusion model: it loads the base's stock processor.

    `processor_config.json` names this class as `processor_class`, and the stock one as `base_processor_class`.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> ProcessorMixin:
        """Loads the stock processor, or a text model's tokenizer; where torchvision is missing, without its video part.

        Args:
            pretrained_model_name_or_path: Checkpoint folder or hub id.
            **kwargs: As in transformers.
        """
        settings, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "base_processor_class" not in settings:  # a text model's folder holds a tokenizer alone
            return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor_class = getattr(transformers, settings["base_processor_class"])
        if not is_torchvision_available():
            processor_class = without_video(processor_class)
            kwargs.setdefault("backend", "pil")
        return processor_class.from_pretrained(pretrained_model_name_or_path, **kwargs)


AutoProcessor.register(DiffusionVLConfig, DiffusionVLProcessor, exist_ok=True)
