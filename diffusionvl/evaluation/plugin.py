"""The plugin of lmms-eval: `lmms-eval --model diffusionvl --model_args pretrained=DIR,...`.

lmms-eval loads `manifests` by its entry point `lmms_eval.models` whatever model it runs, so nothing heavy is imported
here.
"""

from typing import Any

MODULE = "diffusionvl.evaluation.lmms_eval_model"


def manifests() -> Any:
    """What lmms-eval registers: a chat and a simple form of one model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="diffusionvl",
        chat_class_path=f"{MODULE}.DiffusionVLChat",
        simple_class_path=f"{MODULE}.DiffusionVLSimple",
    )
