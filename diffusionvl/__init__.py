"""diffusionvl: translate any autoregressive vision-language model into a block-diffusion one.

Names are loaded when they are first used, so that `import diffusionvl` costs nothing. Once this package is imported,
transformers' Auto classes know block-diffusion checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .assembly import assemble
    from .checkpoints.checkpoint import Checkpoint, save_checkpoint
    from .checkpoints.loading import load_processor
    from .data.conversation import ConversationEncoder
    from .data.prompts import encode, question
    from .data.record import Record
    from .data.sources.records import read_records
    from .modeling.configuration_diffusionvl import DiffusionVLConfig
    from .modeling.engine import Engine
    from .modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig
    from .modeling.generation_diffusionvl import DiffusionVLGenerationOutput
    from .modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
    from .training import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset
    from .translation.translate import translate

__version__ = "0.1.0"

_HOME = {
    "BlockDiffusionConfig": "training",
    "BlockDiffusionTrainer": "training",
    "Checkpoint": "checkpoints.checkpoint",
    "ConversationEncoder": "data.conversation",
    "DiffusionVLConfig": "modeling.configuration_diffusionvl",
    "DiffusionVLForConditionalGeneration": "modeling.modeling_diffusionvl",
    "DiffusionVLGenerationConfig": "modeling.generation_configuration_diffusionvl",
    "DiffusionVLGenerationOutput": "modeling.generation_diffusionvl",
    "Engine": "modeling.engine",
    "Record": "data.sources.records",
    "RowDataset": "training",
    "assemble": "assembly",
    "encode": "data.prompts",
    "load_processor": "checkpoints.loading",
    "question": "data.prompts",
    "read_records": "data.sources.records",
    "save_checkpoint": "checkpoints.checkpoint",
    "translate": "translation.translate",
}

__all__ = [
    "BlockDiffusionConfig",
    "BlockDiffusionTrainer",
    "Checkpoint",
    "ConversationEncoder",
    "DiffusionVLConfig",
    "DiffusionVLForConditionalGeneration",
    "DiffusionVLGenerationConfig",
    "DiffusionVLGenerationOutput",
    "Engine",
    "Record",
    "RowDataset",
    "assemble",
    "encode",
    "load_processor",
    "question",
    "read_records",
    "save_checkpoint",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffusionvl' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


# A module of `modeling` registers its class with the Auto classes when it is imported. That takes seconds, so it waits
# until somebody reaches for an Auto class.
def _register(auto: Any) -> None:
    kind = auto.__name__.rpartition(".")[2].removesuffix("_auto")
    importlib.import_module(f".modeling.{kind}_diffusionvl", __name__)


for _kind in ("configuration", "modeling", "processing"):
    wrapt.register_post_import_hook(_register, f"transformers.models.auto.{_kind}_auto")
