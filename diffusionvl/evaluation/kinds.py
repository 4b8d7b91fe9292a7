"""Tells the kind of a model or a checkpoint: autoregressive (AR) or block diffusion."""

from transformers import PreTrainedModel

from ..checkpoints.loading import load_config
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from . import AR, BLOCK_DIFFUSION

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
