"""LLaDA's checkpoint layout (arXiv 2502.09992), read as the Llama architecture that it is.

LLaDA is a Llama that was trained to fill in masked tokens, seeing all others: its weights have other names, and nothing
else differs but the attention mask. As a stock Llama it takes the same road as any other language model. It was never
autoregressive, so an AR loss over it starts from nothing; block diffusion starts from what it knows.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ..checkpoints.text_processor import TextProcessor
from ..modeling.errors import UserError
from .weights import load_renamed, read_weights, rename_weights

PREFIX = "model.transformer."
OUTER_NAMES = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
REQUIRED = (
    "d_model",
    "n_layers",
    "n_heads",
    "mlp_hidden_size",
    "max_sequence_length",
    "vocab_size",
    "rope_theta",
    "rms_norm_eps",
    "mask_token_id",
)
# What a Llama does; LLaDA's code, OLMo's, could do otherwise.
LLAMA = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
}
END_OF_TURN = "<|eot_id|>"  # LLaDA's tokenizer names its end of text as eos token, which ends no turn


def convert_llada(folder: str) -> tuple[PreTrainedModel, TextProcessor]:
    """Reads a LLaDA checkpoint (LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5) as a Llama.

    Args:
        folder: Folder with the checkpoint's files, as on the hub.

    Returns:
        The language model and its tokenizer, with the interface of a processor.

    Raises:
        UserError: A file, a setting or a weight is missing, or is none that a Llama has.
    """
    settings = read_settings(Path(folder))
    tokenizer = convert_tokenizer(folder, settings["mask_token_id"])
    try:
        config = convert_config(settings, tokenizer)
    except StrictDataclassError as error:
        raise UserError(f"{folder}/config.json: cannot be a Llama's ({error}); copy it from the hub again") from error
    weights = rename_weights(read_weights(Path(folder)), llama_names(config), config, folder, "Llama")
    model = load_renamed(config, weights)
    ends = {tokenizer.eos_token_id, settings.get("eos_token_id")} - {None}
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=sorted(ends), pad_token_id=config.pad_token_id
    )
    return model, TextProcessor(tokenizer)


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads `config.json`, as data: its remote code is not run.

    Raises:
        UserError: It is missing or broken, lacks a setting, or describes something else than a Llama.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the folder of a LLaDA checkpoint") from error
    if not isinstance(settings, dict) or settings.get("model_type") != "llada":
        raise UserError(f"{path}: is not the config of a LLaDA; its model_type must be 'llada'")
    missing = sorted(name for name in REQUIRED if not isinstance(settings.get(name), int | float))
    if missing:
        raise UserError(f"{path}: lacks {missing}, or they are not numbers; copy it from the hub again")
    strange = {name: settings[name] for name, usual in LLAMA.items() if settings.get(name, usual) != usual}
    if strange:
        wanted = {name: LLAMA[name] for name in strange}
        raise UserError(f"{path}: {strange} is not what a Llama does, which is {wanted}; it cannot be converted")
    return settings


def convert_config(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """LLaDA's settings by a Llama's names."""
    return LlamaConfig(
        vocab_size=settings.get("embedding_size") or settings["vocab_size"],
        hidden_size=settings["d_model"],
        intermediate_size=settings["mlp_hidden_size"],
        num_hidden_layers=settings["n_layers"],
        num_attention_heads=settings["n_heads"],
        num_key_value_heads=settings.get("n_kv_heads") or settings["n_heads"],
        max_position_embeddings=settings["max_sequence_length"],
        rms_norm_eps=settings["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": settings["rope_theta"]},
        tie_word_embeddings=settings.get("weight_tying", False),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def llama_names(config: LlamaConfig) -> dict[str, str]:
    """A Llama's name of each of LLaDA's weights."""
    names = {f"{PREFIX}{ours}.weight": f"{theirs}.weight" for ours, theirs in OUTER_NAMES.items()}
    if config.tie_word_embeddings:
        del names[f"{PREFIX}ff_out.weight"]
    for layer in range(config.num_hidden_layers):
        for ours, theirs in BLOCK_NAMES.items():
            names[f"{PREFIX}blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


def convert_tokenizer(folder: str, mask_token_id: int) -> PreTrainedTokenizerBase:
    """LLaDA's tokenizer with what it leaves to its users: the mask token, the end of a turn, a template that can stop.

    Its chat template opens an answer after every conversation, asked or not; here it does when asked
    (`add_generation_prompt`), as other templates do.

    Raises:
        UserError: It is missing, or lacks the mask token.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: holds no tokenizer ({error}); copy its tokenizer.json, too") from error
    mask_token = tokenizer.convert_ids_to_tokens(mask_token_id) if mask_token_id < len(tokenizer) else None
    if mask_token is None:
        raise UserError(f"{folder}: config.json has mask_token_id {mask_token_id}, which the tokenizer does not know")
    tokenizer.mask_token = mask_token
    template = tokenizer.chat_template
    if template is not None and END_OF_TURN in template:
        tokenizer.eos_token = END_OF_TURN
        opening = template.rindex("{{")
        if "assistant" in template[opening:] and "add_generation_prompt" not in template:
            tokenizer.chat_template = (
                f"{template[:opening]}{{% if add_generation_prompt %}}{template[opening:]}{{% endif %}}"
            )
    return tokenizer
