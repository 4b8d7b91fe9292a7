"""diffusionvl: translate any autoregressive vision-language model into a block-diffusion one.

Names are loaded when they are first used, so that `import diffusionvl` costs nothing. Once this package is imported,
transformers' Auto classes know block-diffusion checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .assembly import assemble, save_assembly
    from .checkpoint import load_processor
    from .data.records import Record, read_records
    from .modeling.configuration_diffusionvl import DiffusionVLConfig
    from .modeling.engine_diffusionvl import Engine
    from .modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig
    from .modeling.generation_output_diffusionvl import DiffusionVLGenerationOutput
    from .modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
    from .remote_code import trust_remote_code
    from .training import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset
    from .translation import save_translation, translate

__version__ = "0.1.0"

_HOME = {
    "BlockDiffusionConfig": "training",
    "BlockDiffusionTrainer": "training",
    "DiffusionVLConfig": "modeling.configuration_diffusionvl",
    "DiffusionVLForConditionalGeneration": "modeling.modeling_diffusionvl",
    "DiffusionVLGenerationConfig": "modeling.generation_configuration_diffusionvl",
    "DiffusionVLGenerationOutput": "modeling.generation_output_diffusionvl",
    "Engine": "modeling.engine_diffusionvl",
    "Record": "data.records",
    "RowDataset": "training",
    "assemble": "assembly",
    "load_processor": "checkpoint",
    "read_records": "data.records",
    "save_assembly": "assembly",
    "save_translation": "translation",
    "translate": "translation",
    "trust_remote_code": "remote_code",
}

__all__ = [
    "BlockDiffusionConfig",
    "BlockDiffusionTrainer",
    "DiffusionVLConfig",
    "DiffusionVLForConditionalGeneration",
    "DiffusionVLGenerationConfig",
    "DiffusionVLGenerationOutput",
    "Engine",
    "Record",
    "RowDataset",
    "assemble",
    "load_processor",
    "read_records",
    "save_assembly",
    "save_translation",
    "translate",
    "trust_remote_code",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffusionvl' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


# A module of `modeling` registers its class with the Auto classes when it is imported. That takes seconds, so it waits
# until somebody reaches for an Auto class.
def _register_config(_: Any) -> None:
    importlib.import_module(".modeling.configuration_diffusionvl", __name__)


def _register_model(_: Any) -> None:
    importlib.import_module(".modeling.modeling_diffusionvl", __name__)


wrapt.register_post_import_hook(_register_config, "transformers.models.auto.configuration_auto")
wrapt.register_post_import_hook(_register_model, "transformers.models.auto.modeling_auto")
