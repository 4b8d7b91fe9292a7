"""The weights of a folder, and their names in another program's layout and in a stock model."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling.errors import UserError
from ..modeling.families import auto_class


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Reads every `.safetensors` file of a folder.

    Raises:
        UserError: There is none, one is broken, or two hold the same weight.
    """
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shard = _load_shard(path)
        twice = weights.keys() & shard
        if twice:
            raise UserError(f"{path}: holds {min(twice)!r}, as another file does; leave one checkpoint there")
        weights |= shard
    if not weights:
        raise UserError(f"{folder}: holds no .safetensors file; copy the checkpoint's weights, too")
    return weights


def _load_shard(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is broken ({error}); copy it again") from error


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A stock model of a config that takes no memory."""
    with torch.device("meta"):
        return auto_class(config).from_config(config)


def rename_weights(
    weights: dict[str, Tensor], names: dict[str, str], config: PreTrainedConfig, folder: str, kind: str
) -> dict[str, Tensor]:
    """Weights by a stock model's names; the config learns their type.

    Args:
        weights: By the names of the layout.
        names: A stock model's name of each of the layout's.
        config: Config of the stock model.
        folder: Where they are from, for messages.
        kind: What the folder should hold, for messages.

    Raises:
        UserError: One is missing, left over, or of another shape or type.
    """
    for what, some in (
        ("lacks weights", names.keys() - weights),
        (f"has weights of no {kind}", weights.keys() - names),
    ):
        if some:
            raise UserError(f"{folder}: {what}, such as {sorted(some)[:3]} ({len(some)} in all); copy it from the hub")
    shapes = {name: value.shape for name, value in empty_model(config).state_dict().items()}
    for name, renamed in names.items():
        if weights[name].shape != shapes[renamed]:
            found, expected = [*weights[name].shape], [*shapes[renamed]]
            raise UserError(f"{folder}: {name!r} has shape {found}, its config.json wants {expected}; mend the config")
    dtypes = {value.dtype: name for name, value in weights.items()}
    if len(dtypes) > 1:
        raise UserError(f"{folder}: its weights are of several types, such as {dtypes}; save them in one")
    config.dtype = dtypes.popitem()[0]
    return {renamed: weights[name] for name, renamed in names.items()}


def load_renamed(config: PreTrainedConfig, weights: dict[str, Tensor]) -> PreTrainedModel:
    """The stock model of these weights."""
    model_class = type(empty_model(config))
    return model_class.from_pretrained(None, config=config, state_dict=weights, dtype=config.dtype)
