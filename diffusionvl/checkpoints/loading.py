"""Shorthands for the parts of a `Checkpoint`, and the device that a model runs on."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ..modeling.errors import UserError
from .checkpoint import Checkpoint


def load_config(path: str) -> PreTrainedConfig:
    """`Checkpoint(path).config`."""
    return Checkpoint(path).config


def load_model(path: str, dtype: str | torch.dtype = "auto", **settings: Any) -> PreTrainedModel:
    """`Checkpoint(path).model(dtype, **settings)`."""
    return Checkpoint(path).model(dtype, **settings)


def load_processor(path: str) -> ProcessorMixin:
    """`Checkpoint(path).processor`."""
    return Checkpoint(path).processor


def find_device(name: str | None) -> torch.device:
    """The device of that name; without one, cuda if there is one, else cpu.

    Raises:
        UserError: There is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device {name!r} cannot be used here; cpu always can") from error
    return device


def located(path: str) -> str:
    """The absolute path of a file or a folder, which is found from everywhere; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
