"""Weights of a checkpoint that are all there, or an error that says which are not."""

import pickle
import warnings
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..modeling.errors import UserError


def load_weights(model_class: Any, path: str, dtype: str | torch.dtype = "auto", **settings: Any) -> PreTrainedModel:
    """`from_pretrained` of a model class that raises where transformers would fill weights with noise.

    Weights that the model does not need, such as the text side of a CLIP, are left out without a word.

    Args:
        model_class: A model or an Auto class.
        path: Checkpoint folder or hub id.
        dtype: Type of the weights; the checkpoint's own by default.
        **settings: As in `from_pretrained`.

    Raises:
        UserError: Weights are broken, missing or of another shape.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report on missing weights is what is checked here
    try:
        model, info = model_class.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: its weights are broken ({brief(error)}); copy or save it again") from error
    except OSError as error:  # a folder without weights, too
        raise UserError(f"{path}: its weights cannot be read ({brief(error)}); copy or save it again") from error
    except ImportError as error:  # which says how to install it
        raise UserError(f"{path}: its model needs a package that is not here ({brief(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise UserError(f"{path}: lacks weights such as {min(info['missing_keys'])!r}; copy or save it again")
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise UserError(f"{path}: {name!r} has shape {[*found]}, its config.json wants {[*expected]}; mend the config")
    renamings = vars(model).get("_weight_conversions")
    if is_deepspeed_zero3_enabled() and renamings is not None:
        # It saves under the names it has read, but under ZeRO-3 transformers also keeps renamings that did not apply.
        model._weight_conversions = [renaming for renaming in renamings if renaming.was_used()]
    return model


def merge_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """Merges a LoRA adapter into its base.

    Args:
        model: The base.
        path: Folder of the adapter.

    Raises:
        UserError: The adapter is broken, or belongs to another base.
    """
    from peft import PeftConfig, PeftModel  # of the extra `train`

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # transformers 5.23, to PEFT
        try:
            adapted = PeftModel(model, PeftConfig.from_pretrained(path))
            missing = adapted.load_adapter(path, adapted.active_adapter).missing_keys
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{path}: its adapter does not fit {model.name_or_path} ({brief(error)})") from error
    if missing:
        raise UserError(f"{path}: its adapter lacks weights such as {min(missing)!r}; copy or save it again")
    return adapted.merge_and_unload().requires_grad_(True)  # as any other model


def brief(error: Exception) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:300]
