"""LoRA and QLoRA through PEFT: small matrices beside the frozen ones, and the mask token's own row.

The mask token's embedding means nothing in the AR model, so its row is trained and saved in full beside the adapter, in
the LM head, too, where both are one matrix.
"""

import re
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.loading import located
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from .arguments import BlockDiffusionConfig
from .cost.plan import build_meta_model
from .model_arguments import ModelArguments
from .parts import Parts


def quantization_settings(args: ModelArguments, config: PreTrainedConfig) -> dict[str, Any]:
    """What `load_weights` needs for QLoRA: the language model's weights in four bits (NF4), computing in bf16.

    Args:
        args: The settings of the model.
        config: The model's config, whose parts other than the language model keep their type.

    Raises:
        UserError: bitsandbytes cannot do it here.
    """
    if args.quantization is None:
        return {}
    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise UserError(
            f"quantization={args.quantization!r} needs an NVIDIA GPU and bitsandbytes (`pip install bitsandbytes`); "
            "leave it out for LoRA on unquantised weights"
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["lm_head", *Parts(build_meta_model(config, "auto")).prefixes],
        )
    }


def add_adapter(model: PreTrainedModel, model_args: ModelArguments, args: BlockDiffusionConfig) -> PeftModel:
    """Puts LoRA matrices beside a model's linear layers, and freezes the rest.

    Of `train_modules`, the language model and the vision tower get matrices, and the projector is trained in full; by
    default the language model alone is trained.

    Args:
        model: On any device, the meta device, too.
        model_args: The settings that begin with `lora_`.
        args: Settings of the run.

    Returns:
        The model inside PEFT's; what it saves is the adapter alone.

    Raises:
        UserError: No layer has one of the names in `lora_target_modules`, or the model is an adapter itself.
    """
    assert model_args.lora_r is not None
    if Checkpoint(model_args.model).adapter_base is not None:
        raise UserError(
            f"model {model_args.model!r} is an adapter, and one on top of it would know only the base of both; "
            "run `diffusionvl merge` first"
        )
    parts = args.train_modules or ["language_model"]
    if model_args.quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(args.gradient_checkpointing))
    trained_rows: dict[str, list[int]] | None = None
    if isinstance(model.config, DiffusionVLConfig):
        assert model.config.mask_token_id is not None
        names = {module: name for name, module in model.named_modules()}
        trained_rows = {names[model.get_input_embeddings()]: [model.config.mask_token_id]}
    config = LoraConfig(
        r=model_args.lora_r,
        lora_alpha=2 * model_args.lora_r if model_args.lora_alpha is None else model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=_targets(model, parts, model_args.lora_target_modules),
        modules_to_save=_projector(model) if "projector" in parts else None,
        trainable_token_indices=trained_rows,
    )
    model.name_or_path = located(model_args.model)
    with warnings.catch_warnings():  # PEFT asks for a name that transformers 5.23 has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, config)


def _targets(model: PreTrainedModel, parts: list[str], wanted: list[str] | None) -> str:
    """The linear layers that get matrices, as an expression for their names."""
    head, of = model.get_output_embeddings(), Parts(model).of
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and of(name) in set(parts) - {"projector"}
    ]
    known = {name.rpartition(".")[2] for name in linear}
    absent = [name for name in wanted or [] if name not in known]
    if absent or not linear:
        raise UserError(
            f"lora_target_modules {wanted}: give names of linear layers of {parts}, some of {sorted(known)}"
        )
    chosen = [name for name in linear if name.rpartition(".")[2] in (wanted or known)]
    numbered = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in chosen})
    return "|".join(numbered)


def _projector(model: PreTrainedModel) -> list[str]:
    """The layers of the projector, which are trained and saved in full."""
    of = Parts(model).of
    return [
        name
        for name, module in model.named_modules()
        if of(name) == "projector" and next(module.parameters(recurse=False), None) is not None
    ]
