"""A checkpoint with its code: a folder that transformers loads where this package is not installed."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from .checkpoint import Checkpoint, name_processor
from .model_card import CARD, extend_model_card, write_model_card
from .remote_code import is_remote_code

CONFIG_CLASS = "configuration_diffusionvl.DiffusionVLConfig"
MODEL_CLASS = "modeling_diffusionvl.DiffusionVLForConditionalGeneration"
PROCESSOR_CLASS = "processing_diffusionvl.DiffusionVLProcessor"


def export(folder: str, out: str) -> None:
    """Copies a block-diffusion checkpoint and adds the code of its model.

    Weights are copied as the files that they are; those of a draft-only adapter join its base's. With
    `trust_remote_code=True`, transformers' Auto classes load the result in a process that does not have this package;
    with the package, it loads as any other checkpoint.

    Args:
        folder: Folder of the checkpoint.
        out: New folder; it must exist and be empty.

    Raises:
        UserError: `folder` holds no block-diffusion checkpoint, or its weights, processor or chat template do not load.
    """
    checkpoint = Checkpoint(folder)
    if checkpoint.adapter_base is not None:
        raise UserError(f"{folder}: holds an adapter; run `diffusionvl merge` on it first")
    config = checkpoint.config
    if not isinstance(config, DiffusionVLConfig):
        raise UserError(
            f"{folder}: a {config.model_type!r} model needs no code; run `diffusionvl translate` on it first"
        )
    if is_remote_code(config.base_config):
        raise UserError(
            f"{folder}: its base {config.base_config.model_type!r} has code of its own, which cannot go along; give a "
            "checkpoint whose base is in transformers"
        )
    names = weight_files(Path(folder))
    checkpoint.check()
    joined = config.draft_adapter is not None and config.draft_adapter["base"] is not None
    checkpoint.processor.save_pretrained(out)
    name_processor(out)
    others = [name for name in (GENERATION_CONFIG_NAME, CARD, CONFIG_NAME) if Path(folder, name).exists()]
    for name in others if joined else [*names, *others]:
        shutil.copyfile(Path(folder, name), Path(out, name))
    if joined:
        save_joined(checkpoint, out)
    for source in files("diffusionvl.modeling").iterdir():
        if source.name.endswith(".py") and source.name != "__init__.py":
            Path(out, source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    auto_model = "AutoModelForImageTextToText" if checkpoint.reads_images else "AutoModelForCausalLM"
    add_auto_map(Path(out, CONFIG_NAME), {"AutoConfig": CONFIG_CLASS, auto_model: MODEL_CLASS})
    if checkpoint.reads_images:  # a text model has a tokenizer alone, which is stock
        add_auto_map(Path(out, PROCESSOR_NAME), {"AutoProcessor": PROCESSOR_CLASS})
    if not Path(out, CARD).exists():
        write_model_card(out, config)
    extend_model_card(Path(out, CARD), auto_model)


def save_joined(checkpoint: Checkpoint, out: str) -> None:
    """Saves a draft-only checkpoint whole: the base's weights with the adapter's, which then names no base."""
    model = checkpoint.model()
    model.config.draft_adapter = {**model.config.draft_adapter, "base": None, "fingerprint": None}
    model.save_pretrained(out)


def weight_files(folder: Path) -> list[str]:
    """Names of a checkpoint's weight files, with their index if there are several.

    Raises:
        UserError: There is none, or the index names one that is missing.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        missing = sorted({*_read(index)["weight_map"].values()} - {*names})
        if missing:
            raise UserError(f"{folder}: lacks {missing}, which {index.name} names; copy or save the checkpoint again")
        names.append(index.name)
    if not names:
        raise UserError(f"{folder}: holds no .safetensors file; copy the checkpoint's weights, too")
    return names


def add_auto_map(path: Path, classes: dict[str, str]) -> None:
    """Writes into a JSON file which class of the folder's code each Auto class loads."""
    settings = {**_read(path), "auto_map": classes}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
