"""diffusionvl: translate any autoregressive vision-language model into a block-diffusion one.

Names are loaded when they are first used, so that `import diffusionvl` costs nothing. Once this package is imported,
transformers' Auto classes know block-diffusion checkpoints.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .checkpoint import load_processor
    from .data.records import Record, read_records
    from .modeling import (
        DiffusionVLConfig,
        DiffusionVLForConditionalGeneration,
        DiffusionVLGenerationConfig,
        DiffusionVLGenerationOutput,
    )
    from .training import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset
    from .translation import save_translation, translate

__version__ = "0.1.0"

_HOME = {
    "BlockDiffusionConfig": "training",
    "BlockDiffusionTrainer": "training",
    "DiffusionVLConfig": "modeling",
    "DiffusionVLForConditionalGeneration": "modeling",
    "DiffusionVLGenerationConfig": "modeling",
    "DiffusionVLGenerationOutput": "modeling",
    "Record": "data.records",
    "RowDataset": "training",
    "load_processor": "checkpoint",
    "read_records": "data.records",
    "save_translation": "translation",
    "translate": "translation",
}

__all__ = [
    "BlockDiffusionConfig",
    "BlockDiffusionTrainer",
    "DiffusionVLConfig",
    "DiffusionVLForConditionalGeneration",
    "DiffusionVLGenerationConfig",
    "DiffusionVLGenerationOutput",
    "Record",
    "RowDataset",
    "load_processor",
    "read_records",
    "save_translation",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffusionvl' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def _register_auto_classes(module: ModuleType) -> None:
    """`modeling` registers its classes when it is imported."""
    if module.__name__ == _AUTO_CONFIG and _AUTO_MODEL in sys.modules:
        return  # the Auto models are just being imported, and are told of next
    importlib.import_module(".modeling", __name__)


# Importing transformers takes seconds, so it waits until somebody reaches for an Auto class.
_AUTO_CONFIG, _AUTO_MODEL = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"
wrapt.register_post_import_hook(_register_auto_classes, _AUTO_CONFIG)
wrapt.register_post_import_hook(_register_auto_classes, _AUTO_MODEL)
