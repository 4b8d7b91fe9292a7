"""A checkpoint of any kind: a folder or a hub id whose parts are opened once."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    GENERATION_CONFIG_NAME,
    PROCESSOR_NAME,
    cached_file,
    is_torchvision_available,
    logging,
)

from ..data.chat_template import check_template, with_opening
from ..data.images import open_alike
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import auto_class, caps_scores
from ..modeling.processing_diffusionvl import DiffusionVLProcessor, without_video
from .model_card import CARD, write_model_card
from .remote_code import is_remote_code, needs_remote_code, register_code
from .text_processor import TextProcessor
from .weights import brief, load_weights, merge_adapter

JSON_FILES = (CONFIG_NAME, PROCESSOR_NAME, FEATURE_EXTRACTOR_NAME, TOKENIZER_CONFIG_FILE, GENERATION_CONFIG_NAME)


class Checkpoint:
    """An autoregressive (AR) or a block-diffusion checkpoint, or a LoRA adapter on top of one.

    Args:
        path: Checkpoint folder or hub id, or the folder of an adapter.
        trust_remote_code: Whether to run the checkpoint's own code where its model is not in transformers. Its classes
            stay registered with transformers' Auto classes for the rest of the process.

    Attributes:
        path: As given.
        trust_remote_code: As given.
    """

    def __init__(self, path: str, trust_remote_code: bool = False) -> None:
        self.path = path
        self.trust_remote_code = trust_remote_code

    @cached_property
    def adapter_base(self) -> "Checkpoint | None":
        """The checkpoint that a folder's LoRA adapter belongs to; None for a folder without one, and for a hub id.

        Raises:
            UserError: The adapter's config is broken, or names an adapter.
        """
        config = Path(self.path, ADAPTER_CONFIG_NAME)
        if not config.is_file():
            return None
        try:
            named = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{config}: names no base_model_name_or_path ({brief(error)}); mend or copy it again"
            ) from error
        if not isinstance(named, str) or Path(named, ADAPTER_CONFIG_NAME).is_file():
            raise UserError(
                f"{config}: base_model_name_or_path is {named!r}, which is not a model; name the model that the "
                "adapter was trained on"
            )
        return Checkpoint(named, self.trust_remote_code)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's config; that of its base for an adapter.

        Raises:
            UserError: There is no such checkpoint, or it needs code that is not in transformers.
        """
        if self.adapter_base is not None:
            try:
                return self.adapter_base.config
            except UserError as error:
                raise UserError(
                    f"{self.path}: its base cannot be loaded; mend base_model_name_or_path: {error}"
                ) from error
        self._check_json()
        path, what = self.path, "there is no such folder, and the hub gave"
        if Path(path).is_dir():
            what = "the folder holds"
        try:
            if needs_remote_code(path):
                if not self.trust_remote_code:
                    raise UserError(
                        f"{path}: its model is not in transformers but in code of its own; if you have read and trust "
                        "that code, set trust_remote_code"
                    )
                register_code(path)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except UserError:
            raise
        # The last two stand for a value in config.json.
        except (OSError, ValueError, TypeError, StrictDataclassError) as error:
            raise UserError(f"{path}: {what} no checkpoint that transformers can read ({brief(error)})") from error
        if isinstance(config, DiffusionVLConfig) and config.base_config is None:
            raise UserError(f"{path}: config.json has no base_config; translate the model again")
        return config

    def _check_json(self) -> None:
        """Checks that a folder's JSON files are objects, which transformers takes for granted.

        Raises:
            UserError: One is not; the message names it.
        """
        for name in JSON_FILES:
            path = Path(self.path, name)
            if not path.is_file():
                continue
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: is not JSON that can be read ({brief(error)}); copy it again") from error
            if not isinstance(found, dict):
                raise UserError(f"{path}: holds a {type(found).__name__}, not settings by name; copy it again")

    @property
    def base_config(self) -> PreTrainedConfig:
        """The config of the AR model: its own, or that inside a block-diffusion config."""
        return self.config.base_config if isinstance(self.config, DiffusionVLConfig) else self.config

    @property
    def reads_images(self) -> bool:
        """Whether the model is more than a language model."""
        return auto_class(self.base_config) is not AutoModelForCausalLM

    @property
    def card(self) -> Path:
        """Where the model card of a folder is."""
        return Path(self.path, CARD)

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The processor, which pads on the left.

        A text model has a tokenizer alone, which gets the interface of a processor. Processors of recent families carry
        a video part that needs torchvision. Where torchvision is missing, the same processor is loaded with Pillow for
        images and without its video part.

        Raises:
            UserError: There is no such checkpoint, or it has no processor or tokenizer that transformers knows.
        """
        reads_images = self.reads_images
        if cached_file(self.path, TOKENIZER_CONFIG_FILE, _raise_exceptions_for_missing_entries=False) is None:
            # transformers would make one up that knows no words
            raise UserError(
                f"{self.path}: has no tokenizer ({TOKENIZER_CONFIG_FILE} is missing); put the model's own there"
            )
        try:
            processor = self._image_text_processor() if reads_images else self._text_processor()
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            part = "processor" if reads_images else "tokenizer"
            raise UserError(f"{self.path}: has no {part} that transformers can read ({brief(error)})") from error
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:  # as in Llama; padding is masked, so any token will do
            tokenizer.pad_token = tokenizer.eos_token
        return processor

    def _text_processor(self) -> ProcessorMixin:
        """A tokenizer with the interface of a processor."""
        remote = is_remote_code(self.base_config)
        return TextProcessor(AutoTokenizer.from_pretrained(self.path, trust_remote_code=remote))

    def _image_text_processor(self) -> ProcessorMixin:
        """The processor that a folder names, or else its family's; it opens prompts as the tokenizer would."""
        remote = is_remote_code(self.base_config)
        if is_torchvision_available() or remote:
            processor = AutoProcessor.from_pretrained(self.path, trust_remote_code=remote)
        else:
            settings, _ = ProcessorMixin.get_processor_dict(self.path)
            name = settings.get("base_processor_class") or settings.get("processor_class")
            name = name or PROCESSOR_MAPPING_NAMES.get(self.base_config.model_type)
            processor_class = None if name is None else processor_class_from_name(name)
            if processor_class is None:
                raise UserError(
                    f"{self.path}: {name or self.base_config.model_type} is not one of transformers' processors"
                )
            processor = without_video(processor_class).from_pretrained(self.path, backend="pil")
        if not isinstance(processor, ProcessorMixin):  # of a family without one, AutoProcessor gives a part
            raise UserError(f"{self.path}: a {type(processor).__name__} alone does not read text and images")
        open_alike(processor.image_processor)
        if isinstance(processor.chat_template, str):
            processor.chat_template = with_opening(processor.chat_template, processor.tokenizer)
        return processor

    def model(self, dtype: str | torch.dtype = "auto", **settings: Any) -> PreTrainedModel:
        """Loads the model; a LoRA adapter is merged into its base.

        Args:
            dtype: Type of the weights; the checkpoint's own by default.
            **settings: As in `from_pretrained`.

        Raises:
            UserError: There is no such checkpoint, or its weights are broken, missing or of another shape.
        """
        config = self.config
        if self.adapter_base is not None:
            return merge_adapter(self.adapter_base.model(dtype, **settings), self.path)
        diffusion = isinstance(config, DiffusionVLConfig)
        if caps_scores(config) and not diffusion:  # a block-diffusion model sees to it itself
            settings["attn_implementation"] = "eager"
        model = load_weights(auto_class(config), self.path, dtype, **settings)
        if diffusion:
            vars(model.config).pop("auto_map", None)  # of an export; what is saved from here goes without its code
        return model

    def check(self) -> None:
        """Checks that weights, processor and chat template load, without the memory that the weights take.

        Raises:
            UserError: One does not; the message says why.
        """
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # nothing is loaded that would take time
        try:
            self.model(device_map="meta")
        finally:
            if bars:
                logging.enable_progress_bar()
        check_template(self.processor)


def save_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, out: str, finetuned: bool = False) -> None:
    """Saves a model, its processor and, for a block-diffusion model, its card into one folder.

    Args:
        model: AR or block-diffusion.
        processor: Its processor.
        out: Folder.
        finetuned: Whether the model was trained by block diffusion, for the card.
    """
    model.save_pretrained(out)
    processor.save_pretrained(out)
    if isinstance(model.config, DiffusionVLConfig):
        name_processor(out)
        write_model_card(out, model.config, finetuned)


def name_processor(folder: str) -> None:
    """Makes `AutoProcessor` load the processor of a block-diffusion model by `DiffusionVLProcessor`.

    transformers' own way asks for torchvision in every family that also reads videos. The folder of a text model holds
    a tokenizer alone, and stays as it is, and so does that of a base with code of its own.
    """
    path = Path(folder, PROCESSOR_NAME)
    if not path.exists():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    name = settings["processor_class"]
    if name != DiffusionVLProcessor.__name__ and "auto_map" not in settings:
        settings |= {"processor_class": DiffusionVLProcessor.__name__, "base_processor_class": name}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
