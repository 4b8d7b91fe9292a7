"""Block decoding: a prompt is read, then each block is denoised and committed to the KV cache.

The output fields, the generation config and the streamer follow transformers' own block-diffusion model
(`models/diffusion_gemma`). Legend: B batch, P padded prompt, G generated tokens, D block size, V vocabulary.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, cached_file

from .block_masks import TokenTags, dense_mask
from .canvas_diffusionvl import Canvas
from .families import MEDIA_INPUTS, placeholder_ids
from .remasking_diffusionvl import REMASKING, Generators, choose_tokens, tokens_to_keep, transfer_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model  # what the mixin is mixed into
else:
    _Model = object

NOISY = 1  # stream id of the window that is being denoised
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class DiffusionVLGenerationConfig(GenerationConfig):
    """How answers are decoded. Unknown names are an error.

    Args:
        max_new_tokens: Longest answer, in tokens.
        denoising_steps: S, steps a block of D tokens, 1 to D; D if left out.
        remasking: `low_confidence_static` or `low_confidence_dynamic`.
        confidence_threshold: Probability above which dynamic remasking keeps a token.
        temperature: 0 takes the most probable token.
        top_k: Sample among the k most probable tokens; 0 for all.
        top_p: Sample among the smallest set of tokens that reaches this probability; 1 for all.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step;
            off, each commit (and the prefill) is a forward of its own, as in the reference.
        return_dict_in_generate: Return a `DiffusionVLGenerationOutput` instead of the sequences alone.
        output_history: Keep every denoising step in the output, for a film.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.max_new_tokens: int = kwargs.pop("max_new_tokens", 256)
        self.denoising_steps: int | None = kwargs.pop("denoising_steps", None)
        self.remasking: str = kwargs.pop("remasking", "low_confidence_static")
        self.confidence_threshold: float = kwargs.pop("confidence_threshold", 0.85)
        self.temperature: float = kwargs.pop("temperature", 0.0)
        self.top_k: int = kwargs.pop("top_k", 0)
        self.top_p: float = kwargs.pop("top_p", 1.0)
        self.fused_commit: bool = kwargs.pop("fused_commit", True)
        self.return_dict_in_generate: bool = kwargs.pop("return_dict_in_generate", False)
        self.output_history: bool = kwargs.pop("output_history", False)
        self.eos_token_id: int | list[int] | None = kwargs.pop("eos_token_id", None)
        self.pad_token_id: int | None = kwargs.pop("pad_token_id", None)
        self.bos_token_id: int | None = kwargs.pop("bos_token_id", None)
        self.transformers_version: str | None = kwargs.pop("transformers_version", None)
        self._commit_hash: str | None = kwargs.pop("_commit_hash", None)
        self._from_model_config: bool | None = kwargs.pop("_from_model_config", None)
        if kwargs:
            raise ValueError(f"unknown generation settings {sorted(kwargs)}; known are {sorted(self.to_dict())}")
        self.validate()

    @classmethod
    def from_model_config(cls, model_config: Any) -> "DiffusionVLGenerationConfig":
        """Defaults, with the special tokens of a model config."""
        return cls(eos_token_id=model_config.eos_token_id, pad_token_id=model_config.pad_token_id)

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end an answer, as a list."""
        eos = self.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    def validate(self, **unused: Any) -> None:
        """Checks the values.

        Raises:
            ValueError: Naming the setting, its value and its range.
        """
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.denoising_steps is not None and self.denoising_steps < 1:
            raise ValueError(f"denoising_steps must be at least 1, got {self.denoising_steps}")
        if self.remasking not in REMASKING:
            raise ValueError(f"remasking must be one of {REMASKING}, got {self.remasking!r}")
        if not 0 <= self.confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold must be in [0, 1], got {self.confidence_threshold}")
        if not 0 <= self.temperature < float("inf"):  # NaN compares false
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass
class DenoisingStep:
    """One denoising step of a batch, as it leaves the block.

    Attributes:
        block: Index of the window, from 0.
        tokens: [B, D], the mask id where still masked.
        masked: Which places are still masked [B, D].
        confidence: Confidence of this step's draws [B, D]; 1 where nothing was drawn.
        columns: Column of each place in the padded row, prompt included [B, D].
    """

    block: int
    tokens: Tensor
    masked: Tensor
    confidence: Tensor
    columns: Tensor


@dataclass
class DiffusionVLGenerationOutput(ModelOutput):
    """Output of `generate`.

    Attributes:
        sequences: Prompts and answers [B, P + G]; padded behind each row's end of sequence.
        tokens_per_forward: Answer tokens (the end of sequence counts, padding does not) a forward, for each row [B].
        forwards: Forwards that each row took part in, reading the prompt included [B].
        past_key_values: The KV cache.
        history: The denoising steps, with `output_history`.
    """

    sequences: Tensor | None = None
    tokens_per_forward: Tensor | None = None
    forwards: Tensor | None = None
    past_key_values: Cache | None = None
    history: list[DenoisingStep] | None = None


@dataclass
class _Decoding:
    """What the loop carries from forward to forward."""

    canvas: Canvas
    media: dict[str, Any]
    cache: DynamicCache
    cached: TokenTags  # tags of the tokens in the cache
    pending: Tensor  # columns of clean tokens that are not in the cache yet [B, N]
    forwards: Tensor  # [B]
    history: list[DenoisingStep] = field(default_factory=list)


class DiffusionVLGenerationMixin(_Model):
    """`generate` for a block-diffusion model."""

    generation_config: DiffusionVLGenerationConfig

    def adjust_generation_fn(
        self,
        generation_config: DiffusionVLGenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str,
        **kwargs: Any,
    ) -> None:
        """Reads a checkpoint's `generation_config.json`, if it has one; transformers calls this when it loads."""
        places = {name: kwargs[name] for name in DOWNLOAD_OPTIONS if kwargs.get(name) is not None}
        if generation_config is not None:
            self.generation_config = generation_config
        elif cached_file(
            pretrained_model_name_or_path,
            GENERATION_CONFIG_NAME,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **places,
        ):
            self.generation_config = DiffusionVLGenerationConfig.from_pretrained(
                pretrained_model_name_or_path, **places
            )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: DiffusionVLGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        generator: Generators = None,
        **kwargs: Any,
    ) -> Tensor | DiffusionVLGenerationOutput:
        """Answers prompts, a block of tokens at a time.

        A row's answer does not depend on what else is in the batch: rows have their own block grid, schedule and end.

        Args:
            input_ids: Prompts [B, P], padded on the left.
            attention_mask: 1 for tokens, 0 for padding [B, P].
            generation_config: Settings; the model's own `generation_config` if left out.
            streamer: Receives the prompt and each finished block by `put`, and every step by `put_draft` if it has
                one, such as transformers' `TextDiffusionStreamer`.
            generator: Source of randomness where temperature > 0: one for the batch, or one a row, which makes a
                row's samples independent of its batch.
            **kwargs: Settings of `DiffusionVLGenerationConfig` that differ in this call, and the inputs for images
                and videos that the processor gave.

        Returns:
            Sequences [B, P + G], or a `DiffusionVLGenerationOutput` with `return_dict_in_generate`.

        Raises:
            ValueError: A setting is unknown or out of its range, or a prompt is padded on the right.
        """
        settings, media = self._settings(generation_config, kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        state = self._prepare_decoding(input_ids, attention_mask, media, settings)
        canvas = state.canvas
        done = torch.zeros_like(state.forwards, dtype=torch.bool)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        for index in range(canvas.windows):
            if index > 0:
                state.pending = torch.cat([state.pending, canvas.window(index - 1)], dim=1)
            self._denoise_block(state, index, done, settings, streamer, generator)
            self._finish_block(state, index, done, settings, streamer)
            if bool(done.all()):
                break
        if streamer is not None:
            streamer.end()
        return self._output(state, settings)

    def _settings(
        self, config: DiffusionVLGenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[DiffusionVLGenerationConfig, dict[str, Any]]:
        """Splits keyword arguments into settings and media inputs, and checks the settings against the model."""
        settings = copy.deepcopy(config or self.generation_config)
        rest = settings.update(**kwargs)
        rest.pop("mm_token_type_ids", None)  # the model reads the kind of a token off its id
        media = {name: value for name, value in rest.items() if name in MEDIA_INPUTS and value is not None}
        unknown = sorted(set(rest) - set(MEDIA_INPUTS))
        if unknown:
            raise ValueError(
                f"generate() does not know {unknown}; its settings are "
                f"{sorted(k for k in DiffusionVLGenerationConfig().to_dict() if not k.startswith('_'))}"
            )
        block_size = self.config.block_size
        settings.denoising_steps = settings.denoising_steps or block_size
        if settings.denoising_steps > block_size:
            raise ValueError(f"denoising_steps={settings.denoising_steps} exceeds the model's block_size={block_size}")
        return settings, media

    def _prepare_decoding(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        media: dict[str, Any],
        settings: DiffusionVLGenerationConfig,
    ) -> _Decoding:
        """Lays the prompts out on a canvas, with nothing in the cache."""
        if not bool(attention_mask[:, -1].all()) or bool((attention_mask.diff(dim=1) < 0).any()):
            raise ValueError("generate() needs prompts padded on the left; set processor.tokenizer.padding_side='left'")
        canvas = Canvas.build(
            input_ids,
            attention_mask,
            self.position_ids(input_ids, attention_mask, media),
            self.block_ids(input_ids, attention_mask),
            own_blocks=self.config.block_origin == "response",
            block_size=self.config.block_size,
            max_new_tokens=settings.max_new_tokens,
            mask_token_id=self.config.mask_token_id,
        )
        return _Decoding(
            canvas=canvas,
            media=media,
            cache=DynamicCache(config=self.base.config.get_text_config(decoder=True)),
            cached=canvas.tags(canvas.start[:, None][:, :0]),
            pending=canvas.prefix(),
            forwards=torch.zeros_like(canvas.start),
        )

    def _denoise_block(
        self,
        state: _Decoding,
        index: int,
        done: Tensor,
        settings: DiffusionVLGenerationConfig,
        streamer: BaseStreamer | None,
        generator: Generators,
    ) -> None:
        """Denoises one window of every row that is not done, until nothing in it is masked."""
        canvas = state.canvas
        window = canvas.window(index)
        ids, _ = canvas.tokens(window)
        masked = canvas.masked.gather(1, window) & ~done[:, None]
        # Image features can not be fed without their whole image, so a window that holds placeholders (a prompt
        # that ends in an image, or one block for everything) is run together with all that came before it.
        placeholders = placeholder_ids(self.base.config)
        media_in_window = bool(torch.isin(ids, ids.new_tensor(placeholders)).any())
        forbidden = [self.config.mask_token_id, *(placeholders if media_in_window else [])]
        if not settings.fused_commit and not media_in_window and state.pending.shape[1]:
            self._run(state, window[:, :0], keep_pending=False)
            state.forwards += ~done
        quotas = transfer_schedule(canvas.block_size, settings.denoising_steps or canvas.block_size)
        for quota in quotas:
            active = masked.any(-1)
            if not bool(active.any()):
                break
            logits = self._run(state, window, keep_pending=media_in_window)
            state.forwards += active
            tokens, confidence = choose_tokens(
                logits, forbidden, settings.temperature, settings.top_k, settings.top_p, generator
            )
            needed = torch.full_like(state.forwards, quota)
            keep = tokens_to_keep(confidence, masked, needed, settings.remasking, settings.confidence_threshold)
            ids = torch.where(keep, tokens, ids)
            canvas.ids.scatter_(1, window, ids)
            step_confidence = confidence.masked_fill(~masked, 1.0)
            masked &= ~keep
            if settings.output_history:
                step = (ids.clone(), masked.clone(), step_confidence, window)
                state.history.append(DenoisingStep(index, *(tensor.cpu() for tensor in step)))
            if streamer is not None and hasattr(streamer, "put_draft"):
                streamer.put_draft(canvas.ids[:, max(int(window.min()), canvas.prompt_length) : window.max() + 1].cpu())

    def _run(
        self,
        state: _Decoding,
        window: Tensor,
        keep_pending: bool,
    ) -> Tensor:
        """One forward over the pending clean tokens and a noisy window; the cache keeps the clean ones.

        Returns:
            Logits of the window [B, D, V].
        """
        canvas = state.canvas
        clean, noisy = canvas.tags(state.pending), canvas.tags(window, NOISY)
        query = clean.cat(noisy)
        key = state.cached.cat(query)
        ids, positions = canvas.tokens(torch.cat([state.pending, window], dim=1))
        # Columns left of the canvas repeat its first token: it must not be an image placeholder.
        if state.pending.shape[1]:
            ids = torch.where(query.document < 0, self.config.mask_token_id, ids)
        logits = self(
            input_ids=ids,
            attention_mask=dense_mask(query, key),
            position_ids=positions,
            past_key_values=state.cache,
            logits_to_keep=window.shape[1] or 1,
            use_cache=True,
            **(state.media if state.pending.shape[1] or keep_pending else {}),
        ).logits
        dropped = window.shape[1] + (state.pending.shape[1] if keep_pending else 0)
        if dropped:
            state.cache.crop(-dropped)
        if not keep_pending:
            state.cached = state.cached.cat(clean)
            state.pending = state.pending[:, :0]
            state.media = {}
        return logits

    def _finish_block(
        self,
        state: _Decoding,
        index: int,
        done: Tensor,
        settings: DiffusionVLGenerationConfig,
        streamer: BaseStreamer | None,
    ) -> None:
        """Marks rows whose answer ended in this window, and pads behind the end."""
        canvas = state.canvas
        pad = settings.pad_token_id if settings.pad_token_id is not None else (settings.eos_token_ids or [0])[0]
        answer = canvas.ids[:, canvas.prompt_length :]
        written = int(canvas.window(index).max()) + 1 - canvas.prompt_length
        ends = torch.isin(answer, answer.new_tensor(settings.eos_token_ids))
        after_end = ends.long().cumsum(-1) - ends.long() > 0
        answer[after_end] = pad
        own_written = canvas.window(index)[:, -1] + 1 - canvas.prompt_length
        done |= ends.any(-1) | (own_written >= settings.max_new_tokens)
        if streamer is not None:
            begin = max(int(canvas.window(index).min()) - canvas.prompt_length, 0)
            streamer.put(answer[:, begin : min(written, settings.max_new_tokens)].cpu())

    def _output(self, state: _Decoding, settings: DiffusionVLGenerationConfig) -> Tensor | DiffusionVLGenerationOutput:
        """Cuts the canvas to the longest answer."""
        canvas = state.canvas
        answer = canvas.ids[:, canvas.prompt_length :][:, : settings.max_new_tokens]
        ends = torch.isin(answer, answer.new_tensor(settings.eos_token_ids))
        lengths = torch.where(ends.any(-1), ends.long().argmax(-1) + 1, settings.max_new_tokens)
        sequences = canvas.ids[:, : canvas.prompt_length + int(lengths.max())]
        if not settings.return_dict_in_generate:
            return sequences
        return DiffusionVLGenerationOutput(
            sequences=sequences,
            tokens_per_forward=lengths / state.forwards,
            forwards=state.forwards,
            past_key_values=state.cache,
            history=state.history if settings.output_history else None,
        )
