"""Loads the parts of a checkpoint; its processor without torchvision where only still images are needed."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import ADAPTER_CONFIG_NAME, cached_file, is_torchvision_available, logging

from ..data.chat_template import with_opening
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import auto_class, caps_scores
from ..modeling.processing_diffusionvl import without_video
from .remote_code import is_remote_code, needs_remote_code
from .text_processor import TextProcessor


def _brief(error: Exception) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:300]


def load_config(path: str) -> PreTrainedConfig:
    """Loads the config of an AR or a block-diffusion checkpoint.

    Args:
        path: Checkpoint folder or hub id; that of an adapter's base if it is an adapter's folder.

    Raises:
        UserError: There is no such checkpoint, or it needs code that is not in transformers.
    """
    base = adapter_base(path)
    if base is not None:
        return load_config(base)
    try:
        if needs_remote_code(path):
            raise UserError(
                f"{path}: its model is not in transformers but in code of its own; if you have read and trust that "
                "code, add --trust-remote-code (in Python: diffusionvl.trust_remote_code)"
            )
    except OSError:
        pass  # told below
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:  # the last two for a value in config.json
        what = "the folder holds" if Path(path).is_dir() else "there is no such folder, and the hub gave"
        raise UserError(f"{path}: {what} no checkpoint that transformers can read ({_brief(error)})") from error


def adapter_base(path: str) -> str | None:
    """The checkpoint that a folder's LoRA adapter belongs to; None for a folder that holds none, and for a hub id.

    Raises:
        UserError: The adapter's config is broken.
    """
    config = Path(path, ADAPTER_CONFIG_NAME)
    if not config.is_file():
        return None
    try:
        return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{config}: names no base_model_name_or_path ({_brief(error)}); mend or copy it again"
        ) from error


def load_model(path: str, dtype: str | torch.dtype = "auto", **settings: Any) -> PreTrainedModel:
    """Loads the model of an AR or a block-diffusion checkpoint; a LoRA adapter is merged into its base.

    Args:
        path: Checkpoint folder or hub id, or the folder of an adapter.
        dtype: Type of the weights; the checkpoint's own by default.
        **settings: As in `from_pretrained`.

    Raises:
        UserError: There is no such checkpoint, or its weights are broken, missing or of another shape.
    """
    base = adapter_base(path)
    if base is None:
        config = load_config(path)
        if isinstance(config, DiffusionVLConfig):
            model = load_weights(auto_class(config), path, dtype, **settings)
            vars(model.config).pop("auto_map", None)  # of an export; what is saved from here goes without its code
            return model
        if caps_scores(config):  # a block-diffusion model sees to it itself
            settings["attn_implementation"] = "eager"
        return load_weights(auto_class(config), path, dtype, **settings)
    from peft import PeftModel  # of the extra `train`

    try:
        model = load_model(base, dtype)
    except ValueError as error:
        raise UserError(f"{path}: its base cannot be loaded; mend base_model_name_or_path: {error}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # transformers 5.23, to PEFT
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, path).merge_and_unload().requires_grad_(True)  # as any other model
        except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
            raise UserError(f"{path}: its adapter does not fit {base} ({_brief(error)})") from error


def load_weights(model_class: Any, path: str, dtype: str | torch.dtype = "auto", **settings: Any) -> PreTrainedModel:
    """`from_pretrained` of a model class that raises where transformers would fill weights with noise.

    Weights that the model does not need, such as the text side of a CLIP, are left out without a word.

    Args:
        model_class: A model or an Auto class.
        path: Checkpoint folder or hub id.
        dtype: Type of the weights; the checkpoint's own by default.
        **settings: As in `from_pretrained`.

    Raises:
        UserError: Weights are broken, missing or of another shape.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report on missing weights is what is checked here
    try:
        model, info = model_class.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except SafetensorError as error:
        raise UserError(f"{path}: its weights are broken ({error}); copy or save it again") from error
    except ImportError as error:  # which says how to install it
        raise UserError(f"{path}: its model needs a package that is not here ({_brief(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise UserError(f"{path}: lacks weights such as {min(info['missing_keys'])!r}; copy or save it again")
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise UserError(f"{path}: {name!r} has shape {[*found]}, its config.json wants {[*expected]}; mend the config")
    renamings = vars(model).get("_weight_conversions")
    if is_deepspeed_zero3_enabled() and renamings is not None:
        # It saves under the names it has read, but under ZeRO-3 transformers also keeps renamings that did not apply.
        model._weight_conversions = [renaming for renaming in renamings if renaming.was_used()]
    return model


def load_processor(path: str) -> ProcessorMixin:
    """Loads the processor of an AR or a block-diffusion checkpoint, padding on the left.

    A text model has a tokenizer alone, which gets the interface of a processor. Processors of recent families carry a
    video part that needs torchvision. Where torchvision is missing, the same processor is loaded with Pillow for
    images and without its video part.

    Args:
        path: Checkpoint folder or hub id.

    Raises:
        UserError: There is no such checkpoint, or it has no processor or tokenizer that transformers knows.
    """
    config = load_config(path)
    base_config = config.base_config if isinstance(config, DiffusionVLConfig) else config
    text_only = auto_class(base_config) is AutoModelForCausalLM
    if cached_file(path, TOKENIZER_CONFIG_FILE, _raise_exceptions_for_missing_entries=False) is None:
        # transformers would make one up that knows no words
        raise UserError(f"{path}: has no tokenizer ({TOKENIZER_CONFIG_FILE} is missing); put the model's own there")
    try:
        processor = (_text_processor if text_only else _image_text_processor)(path, base_config)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        part = "tokenizer" if text_only else "processor"
        raise UserError(f"{path}: has no {part} that transformers can read ({_brief(error)})") from error
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:  # as of Llama; padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _text_processor(path: str, base_config: PreTrainedConfig) -> ProcessorMixin:
    """A tokenizer with the interface of a processor."""
    return TextProcessor(AutoTokenizer.from_pretrained(path, trust_remote_code=is_remote_code(base_config)))


def _image_text_processor(path: str, base_config: PreTrainedConfig) -> ProcessorMixin:
    """The processor that a folder names, or else its family's; one that opens prompts as the tokenizer would."""
    remote = is_remote_code(base_config)
    if is_torchvision_available() or remote:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=remote)
    else:
        settings, _ = ProcessorMixin.get_processor_dict(path)
        name = settings.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(base_config.model_type)
        processor_class = None if name is None else processor_class_from_name(name)
        if processor_class is None:
            raise UserError(f"{name or base_config.model_type} is none of its processors")
        processor = without_video(processor_class).from_pretrained(path, backend="pil")
    if not isinstance(processor, ProcessorMixin):  # of a family without one, AutoProcessor gives a part
        raise UserError(f"a {type(processor).__name__} alone does not read text and images")
    if isinstance(processor.chat_template, str):
        processor.chat_template = with_opening(processor.chat_template, processor.tokenizer)
    return processor


def find_device(name: str | None) -> "torch.device":
    """The device of that name; without one, cuda if there is one, else cpu.

    Raises:
        UserError: There is no such device here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name!r} cannot be used here; `--device cpu` always can") from error
    return device
