"""Configuration of a block-diffusion vision-language model."""

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from .errors import UserError

POSITION_MODES = ("native", "sequential")
BLOCK_ORIGINS = ("response", "absolute")
CLEAN_ATTENTION = ("block", "causal")
DRAFT_ADAPTER = ("rank", "alpha", "base", "fingerprint")  # what its settings hold at least


class DiffusionVLConfig(PreTrainedConfig):
    """What turns an autoregressive (AR) base into a block-diffusion model.

    Args:
        base_config: Config of the AR base, any Hugging Face image-text-to-text model, as a config or its dictionary.
        block_size: D, the number of tokens that are denoised together.
        mask_token_id: The id that stands for a masked token; `translate` picks it.
        position_mode: `native` uses the base's own rope index (true M-RoPE where it has one); `sequential` counts
            0, 1, 2, ... on every axis, as the reference and its released weights do.
        block_origin: `response` starts a new block with every response, so no block mixes turns; `absolute` cuts
            the whole row from index 0, as the reference does.
        clean_attention: `block` lets the clean tokens of a block see one another, as the paper has it; `causal` lets a
            clean token see what the AR base lets it see, so that its keys, values and logits are the base's own.
        response_header_ids: The ids that open a response (for Qwen `<|im_start|>assistant\\n`). With
            `block_origin="response"` they mark where a prompt's earlier responses stand.
        base_model_name_or_path: The AR checkpoint that was translated, for the model card.
        draft_adapter: Of a draft-only checkpoint, the settings of its adapter (`modeling/draft_adapter.py`): `rank`,
            `alpha`, `layers`, the names of the layers that it changes (all where there are none), `base`, the AR
            checkpoint whose weights it belongs to, or None where they are in the same folder, and `fingerprint`, by
            which those weights are recognised.

    Raises:
        UserError: A field has a value outside its range.
    """

    model_type = "diffusionvl"
    sub_configs = {"base_config": AutoConfig}
    base_config: Any = None  # until `__init__` sets it
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        base_config: Any = None,
        block_size: int = 8,
        mask_token_id: int | None = None,
        position_mode: Literal["native", "sequential"] = "native",
        block_origin: Literal["response", "absolute"] = "response",
        clean_attention: Literal["block", "causal"] = "block",
        response_header_ids: list[int] | None = None,
        base_model_name_or_path: str | None = None,
        draft_adapter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            if "model_type" not in base_config:
                raise UserError(f"base_config must be the config of an AR model, got {base_config!r}")
            base_config = AutoConfig.for_model(**base_config)
        elif base_config is not None and not isinstance(base_config, PreTrainedConfig):
            raise UserError(f"base_config must be the config of an AR model, got {base_config!r}")
        if not isinstance(block_size, int) or block_size < 1:
            raise UserError(f"block_size must be an integer of at least 1, got {block_size!r}")
        if mask_token_id is not None and (not isinstance(mask_token_id, int) or mask_token_id < 0):
            raise UserError(f"mask_token_id must be the id of a token, got {mask_token_id!r}")
        if not isinstance(response_header_ids, list | tuple | None):
            raise UserError(f"response_header_ids must be a list of token ids, got {response_header_ids!r}")
        if position_mode not in POSITION_MODES:
            raise UserError(f"position_mode must be one of {POSITION_MODES}, got {position_mode!r}")
        if block_origin not in BLOCK_ORIGINS:
            raise UserError(f"block_origin must be one of {BLOCK_ORIGINS}, got {block_origin!r}")
        if clean_attention not in CLEAN_ATTENTION:
            raise UserError(f"clean_attention must be one of {CLEAN_ATTENTION}, got {clean_attention!r}")
        if draft_adapter is not None and (missing := {*DRAFT_ADAPTER} - {*draft_adapter}):
            raise UserError(f"draft_adapter needs {', '.join(DRAFT_ADAPTER)}; {', '.join(sorted(missing))} is missing")
        if draft_adapter is not None and clean_attention != "causal":
            raise UserError(f"a draft_adapter needs clean_attention 'causal', got {clean_attention!r}")
        if base_config is not None:
            text = base_config.get_text_config(decoder=True).to_dict()
            # PreTrainedConfig would reset the base's choice to None, which eager attention then stands for.
            kwargs.setdefault("attn_implementation", base_config._attn_implementation)
            kwargs.setdefault("tie_word_embeddings", base_config.to_dict().get("tie_word_embeddings", False))
            kwargs.setdefault("pad_token_id", text.get("pad_token_id"))
            kwargs.setdefault("eos_token_id", text.get("eos_token_id"))
        super().__init__(**kwargs)
        # After `super().__init__`, which would set the choices of kernels of all parts of the base to one.
        self.base_config = base_config
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        self.position_mode = position_mode
        self.block_origin = block_origin
        self.clean_attention = clean_attention
        self.response_header_ids = list(response_header_ids or [])
        self.base_model_name_or_path = base_model_name_or_path
        self.draft_adapter = draft_adapter

    @property
    def end_of_turn_ids(self) -> list[int]:
        """`eos_token_id` as a list: the ids that close a turn."""
        eos = self.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the base's text model."""
        if self.base_config is None:
            raise AttributeError("a config without base_config has no text_config")
        return self.get_text_config(decoder=True)

    @property
    def hidden_size(self) -> int:
        """The width of the base's text model, which DeepSpeed's `auto` sizes follow."""
        return self.text_config.hidden_size

    @property
    def vocab_size(self) -> int:
        """The number of rows of the base's embeddings."""
        return self.text_config.vocab_size

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The base's text config: hidden size, layers and vocabulary are the base's own."""
        return self if self.base_config is None else self.base_config.get_text_config(*args, **kwargs)


AutoConfig.register(DiffusionVLConfig.model_type, DiffusionVLConfig, exist_ok=True)
