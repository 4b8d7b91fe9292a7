"""Any autoregressive model, with vision or of text alone, under a block-diffusion mask.

Legend: A axes of a position, B batch, T tokens of a row, L clean tokens, M selected tokens, V vocabulary, E hidden.
"""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .attention import DENSE, FLEX, layer_masks, unreadable
from .block_grid import clean_blocks, row_blocks
from .block_masks import CLEAN, PADDING, TokenTags
from .configuration_diffusionvl import DiffusionVLConfig
from .draft_adapter import DraftAdapter, weights_fingerprint
from .draft_pace import DraftPace
from .errors import UserError
from .families import (
    auto_class,
    cache_input,
    caps_scores,
    fixed_inputs,
    is_token_type,
    layer_windows,
    native_positions,
    position_axes,
    reads_images_whole,
    sequential_positions,
    takes,
)
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .generation_diffusionvl import DiffusionVLGenerationMixin
from .hooks import head_on, media_features_of_twins

BASE_SETTINGS = (
    "dtype",
    "torch_dtype",
    "device_map",
    "quantization_config",
    "attn_implementation",
)  # of a draft's base

LABELS = (
    "labels: a loss on tokens that the model sees is not the block-diffusion loss; train with "
    "diffusionvl.BlockDiffusionTrainer, which masks them first"
)


class DiffusionVLForConditionalGeneration(PreTrainedModel, DiffusionVLGenerationMixin):
    """A block-diffusion vision-language model: an unchanged AR base that sees a different mask.

    The base runs through its public `forward`, given a 4-D mask and explicit positions, and merges its own image
    features. Everything this class adds is the mask, the positions and the choice of tokens that need logits. These
    are not shifted: the logits at a token predict that token.
    """

    config_class = DiffusionVLConfig
    generation_config_class = DiffusionVLGenerationConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _tied_weights_keys: dict[str, str] = {}  # of its own; PEFT adds the base's where it finds this
    output_modalities = ("text",)  # which pipelines ask for

    def __init__(self, config: DiffusionVLConfig, base: PreTrainedModel | None = None) -> None:
        """Builds the model around `base`, or around a new base made from `config.base_config`."""
        if config.mask_token_id is None:
            raise UserError("config.mask_token_id is not set; `diffusionvl.translate` picks one for an AR model")
        super().__init__(config)
        vocabulary = config.vocab_size if base is None else base.get_input_embeddings().num_embeddings
        if config.mask_token_id >= vocabulary and config.draft_adapter is None:  # an adapter embeds its mask itself
            raise UserError(
                f"config.mask_token_id is {config.mask_token_id}, but the embeddings have {vocabulary} rows; "
                "give the id of a row"
            )
        if base is None and caps_scores(config.base_config):
            config.base_config._attn_implementation = "eager"
        self.base = auto_class(config.base_config).from_config(config.base_config) if base is None else base
        if base is None:
            self.post_init()
        self.windows = layer_windows(self.base.config)
        self.fixed_inputs = fixed_inputs(self.base.config)
        if reads_images_whole(self.base.config) and config.block_origin == "absolute":
            raise UserError(
                f"block_origin='absolute' would cut images apart, which model type {self.base.config.model_type!r} "
                "reads whole; use block_origin='response'"
            )
        self.generation_config = DiffusionVLGenerationConfig.from_model_config(config)
        self.draft_pace = DraftPace()  # what its forwards cost and its drafts are worth, as decoding finds out
        self.draft: DraftAdapter | None = None
        if config.draft_adapter is not None:
            settings = config.draft_adapter
            self.draft = DraftAdapter(
                self.base, config.mask_token_id, settings["rank"], settings["alpha"], settings.get("layers")
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a draft-only checkpoint brings its base from where that is.

        Raises:
            UserError: The base has other weights than those that the adapter was trained on.
        """
        config = kwargs.get("config") or DiffusionVLConfig.from_pretrained(pretrained_model_name_or_path)
        settings = config.draft_adapter
        if settings is None or settings["base"] is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        path = settings["base"]
        if settings["fingerprint"] not in (None, weights_fingerprint(path)):
            raise UserError(
                f"{pretrained_model_name_or_path}: its adapter was trained on other weights than those of {path}; put "
                "the right base there, or its path into draft_adapter of config.json"
            )
        base_settings = {name: kwargs[name] for name in BASE_SETTINGS if name in kwargs}
        if caps_scores(config.base_config):
            base_settings["attn_implementation"] = "eager"
        base = auto_class(config.base_config).from_pretrained(path, **base_settings)
        model = cls(config, base.base if isinstance(base, cls) else base)
        model.load_draft(pretrained_model_name_or_path)
        assert model.draft is not None
        model.draft.to(base.device, base.dtype)
        info: dict[str, Any] = {"missing_keys": [], "mismatched_keys": []}
        return (model.eval(), info) if kwargs.get("output_loading_info") else model.eval()

    def load_draft(self, path: str) -> None:
        """Loads the weights of the draft adapter from a draft-only checkpoint, a folder or a hub id.

        Raises:
            UserError: The config describes another adapter than the one whose weights are there.
        """
        assert self.draft is not None
        weights = load_file(cached_file(path, SAFE_WEIGHTS_NAME))
        weights = {name.removeprefix("draft."): value for name, value in weights.items()}
        own = self.draft.state_dict()
        if {name: value.shape for name, value in weights.items()} != {name: own[name].shape for name in own}:
            raise UserError(
                f"{path}: its weights are {len(weights)} tensors of another adapter than the one that draft_adapter of "
                f"config.json describes, which has {len(own)}; restore rank and layers there"
            )
        self.draft.load_state_dict(weights)

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """The base's tied weights, under this model's names."""
        return {f"base.{name}": f"base.{source}" for name, source in self.base.all_tied_weights_keys.items()}

    @all_tied_weights_keys.setter
    def all_tied_weights_keys(self, value: dict[str, str]) -> None:
        """Set by transformers in `post_init`; the base's own are the ones that count."""

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in transformers; the code of a base that is not in transformers goes into the folder, too.

        Of a draft-only model, the adapter alone is saved, unless `config.draft_adapter` names no base.
        """
        if self.draft is not None and self.config.draft_adapter["base"] is not None:
            weights = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {name: value for name, value in weights.items() if name.startswith("draft.")}
        super().save_pretrained(save_directory, **kwargs)
        if type(self.base).__module__.startswith("transformers_modules."):
            for part in (self.base.config, self.base):
                custom_object_save(part, save_directory)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The base's input embeddings."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replaces the base's input embeddings."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        """The base's LM head."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        """Replaces the base's LM head."""
        self.base.set_output_embeddings(value)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """As in transformers, which knows nothing of masks that an implementation cannot read.

        Raises:
            UserError: The implementation cannot read a block-diffusion mask.
        """
        if attn_implementation not in (None, FLEX, *DENSE):
            raise unreadable(attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        stream_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        media_twins: Tensor | None = None,
        past_key_values: Cache | None = None,
        key_positions: Tensor | None = None,
        token_indices: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None,
        **media: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the base over rows of clean and noisy tokens.

        Args:
            input_ids: Tokens [B, T]; noisy tokens that are masked hold `config.mask_token_id`.
            attention_mask: Padding mask [B, T] of clean rows, or a boolean mask [B, 1, T, K] that is used as it is.
            position_ids: [A, B, T]; left out, those of clean rows are computed from `input_ids`.
            block_ids: Block of each token as the mask reads it [B, T] (`TokenTags.block`); left out, the row is clean
                and has those of `clean_blocks`.
            stream_ids: 0 for clean, 1, 2, ... for noisy copies [B, T]; all clean if left out. A draft adapter acts on
                noisy tokens, beside a 4-D mask, too.
            document_ids: Document of each token [B, T], -1 for padding; one document if left out.
            media_twins: As of `media_features_of_twins`.
            past_key_values: Cache of clean tokens before these, for `use_cache`; needs a 4-D `attention_mask`.
            key_positions: [B, K], for layers with a sliding window over a cache.
            token_indices: Indices [M] into the flattened batch: logits [M, V] are computed for these tokens alone.
            logits_to_keep: As in transformers; ignored beside `token_indices`.
            use_cache: As in transformers.
            **media: The base's image and video inputs; the types of tokens are read off their ids.

        Raises:
            UserError: `labels` are given, whose loss needs the trainer's noise; or a 4-D mask comes without positions.
        """
        if media.pop("labels", None) is not None:
            raise UserError(LABELS)
        seen: TokenTags | Tensor
        if attention_mask is None or attention_mask.ndim == 2:
            seen = self._tags(input_ids, attention_mask, block_ids, stream_ids, document_ids)
            if position_ids is None:
                position_ids = self.position_ids(input_ids, seen.document != PADDING, media)
        elif position_ids is None:
            raise UserError("a 4-D attention_mask needs explicit position_ids")
        else:
            seen = attention_mask
        inputs: dict[str, Any] = dict(
            input_ids=input_ids,
            attention_mask=layer_masks(self.base, self.windows, seen, position_ids[0], key_positions),
            position_ids=position_ids[0] if position_ids.shape[0] == 1 else position_ids,
            use_cache=use_cache,
            **{cache_input(type(self.base)): past_key_values},
            **self.fixed_inputs,
            **{name: value for name, value in media.items() if not is_token_type(name)},
        )
        with nullcontext() if self.draft is None else self.draft.acting_on(stream_ids):
            return self._run_base(inputs, media_twins, token_indices, logits_to_keep)

    def _run_base(
        self,
        inputs: dict[str, Any],
        media_twins: Tensor | None,
        token_indices: Tensor | None,
        logits_to_keep: int | Tensor,
    ) -> CausalLMOutputWithPast:
        """The base's output with the logits that `forward` is asked for."""
        keeps = token_indices is None and takes(self.base, "logits_to_keep")
        with ExitStack() as hooks:
            if media_twins is not None and media_twins.shape[1]:
                hooks.enter_context(media_features_of_twins(self.base, media_twins))
            if token_indices is not None:
                hooks.enter_context(head_on(self.base, token_indices))
            output = self.base(**inputs, **({"logits_to_keep": logits_to_keep} if keeps else {}))
        if token_indices is not None:
            output.logits = output.logits[0]
        elif not keeps:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            output.logits = output.logits[:, kept]
        return output

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any]) -> Tensor:
        """Positions [A, B, L] of clean rows [B, L], by `config.position_mode`."""
        if self.config.position_mode == "sequential":
            return sequential_positions(attention_mask, position_axes(self.base.config))
        return native_positions(self.base, input_ids, attention_mask, media)

    def block_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Block that each clean token [B, L] is denoised with, by `config.block_origin`; 0 in the padding."""
        return self._row_by_row(row_blocks, input_ids, attention_mask)

    def clean_blocks(self, input_ids: Tensor, attention_mask: Tensor, block_size: int | None = None) -> Tensor:
        """Block of each clean token [B, L] as the mask reads it, by `config.clean_attention`; 0 in the padding.

        `block_size` is D where it is not `config.block_size`.
        """
        return self._row_by_row(clean_blocks, input_ids, attention_mask, block_size)

    def _row_by_row(
        self, grid: Callable[..., Tensor], input_ids: Tensor, attention_mask: Tensor, block_size: int | None = None
    ) -> Tensor:
        blocks = torch.zeros_like(input_ids, dtype=torch.long)
        for row, (ids, real) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
            blocks[row, real] = grid(self.config, ids[real], block_size)
        return blocks

    def _tags(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        block_ids: Tensor | None,
        stream_ids: Tensor | None,
        document_ids: Tensor | None,
    ) -> TokenTags:
        """Tags of a batch, with the defaults of `forward`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if block_ids is None:
            block_ids = self.clean_blocks(input_ids, attention_mask)
        if stream_ids is None:
            stream_ids = torch.full_like(input_ids, CLEAN)
        if document_ids is None:
            document_ids = torch.zeros_like(input_ids).masked_fill(attention_mask == 0, PADDING)
        return TokenTags(block_ids, stream_ids, document_ids)


for _auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
    _auto_class.register(DiffusionVLConfig, DiffusionVLForConditionalGeneration, exist_ok=True)
