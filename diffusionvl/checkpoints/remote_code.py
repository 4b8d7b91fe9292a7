"""Bases whose code is in their own repository instead of transformers; it runs only where the user says so."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..modeling.errors import UserError

REMOTE_MODULES = "transformers_modules."  # where transformers puts code from a repository


def needs_remote_code(path: str) -> bool:
    """Whether a checkpoint, or the base inside it, is of a type that transformers does not know and brings its code.

    Args:
        path: Checkpoint folder or hub id.

    Raises:
        OSError: There is no such checkpoint.
    """
    base = _base_config(path)
    return "auto_map" in base and base.get("model_type") not in CONFIG_MAPPING


def register_code(path: str) -> None:
    """Runs a checkpoint's own code and registers its classes with transformers' Auto classes for this process.

    Args:
        path: Checkpoint folder or hub id.

    Raises:
        OSError: There is no such checkpoint, or its code is missing.
        UserError: Its code has no config or no model that can be translated.
    """
    auto_map = _base_config(path)["auto_map"]
    kinds = [kind for kind in (AutoModelForImageTextToText, AutoModelForCausalLM) if kind.__name__ in auto_map]
    if "AutoConfig" not in auto_map or not kinds:
        raise UserError(f"{path}: its code ({sorted(auto_map)}) names no AutoConfig with an AutoModelForCausalLM")
    config_class = get_class_from_dynamic_module(auto_map["AutoConfig"], path)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for kind in kinds:
        model_class = get_class_from_dynamic_module(auto_map[kind.__name__], path)
        kind.register(config_class, model_class, exist_ok=True)


def is_remote_code(config: PreTrainedConfig) -> bool:
    """Whether a config's class is code from a repository, which then was permitted in this process."""
    return type(config).__module__.startswith(REMOTE_MODULES)


def _base_config(path: str) -> dict[str, Any]:
    """`config.json` as it is written; of a block-diffusion checkpoint, the base's part."""
    raw, _ = PreTrainedConfig.get_config_dict(path)
    return raw.get("base_config") or raw
