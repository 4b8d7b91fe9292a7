"""Recognises models and checkpoints: autoregressive (AR) or block diffusion, and the same files or others."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..checkpoints.loading import load_config
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from . import AR, BLOCK_DIFFUSION

# Files of a checkpoint that decide its answers.
DECISIVE = ("*.safetensors", "*config.json", "tokenizer.json", "chat_template.jinja")
EXPECTED = ("auto", AR, BLOCK_DIFFUSION)


def kind_of(model: PreTrainedModel) -> str:
    """Returns `block_diffusion`, or `ar` for any other model."""
    return BLOCK_DIFFUSION if isinstance(model, DiffusionVLForConditionalGeneration) else AR


def kind_of_checkpoint(path: str, expected: str = "auto") -> tuple[str, int | None]:
    """Returns the kind of a checkpoint and its block size, None for AR.

    Args:
        path: A folder or a hub id.
        expected: The kind that it should have, or `auto` for any.

    Raises:
        UserError: The checkpoint cannot be read, or is of another kind.
    """
    if expected not in EXPECTED:
        raise UserError(f"decode must be one of {EXPECTED}, got {expected!r}")
    config = load_config(path)
    kind, block_size = (BLOCK_DIFFUSION, config.block_size) if isinstance(config, DiffusionVLConfig) else (AR, None)
    if expected not in ("auto", kind):
        remedy = "give its AR base" if expected == AR else f"run `diffusionvl translate {path}` and finetune the result"
        raise UserError(f"decode={expected}, but {path} is a checkpoint of kind {kind}; {remedy}")
    return kind, block_size


def files_state(path: Path) -> list[list[Any]]:
    """Returns name, size and time of a file or of a checkpoint's files, by which a changed one is recognised."""
    files = [path] if path.is_file() else sorted(file for pattern in DECISIVE for file in path.glob(pattern))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
