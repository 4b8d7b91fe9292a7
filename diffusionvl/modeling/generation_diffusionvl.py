"""Block decoding: a prompt is read, then each block is denoised and committed to the KV cache.

The output fields, the generation config and the streamer follow transformers' own block-diffusion model
(`models/diffusion_gemma`). Legend: B batch, P padded prompt, G generated tokens, D block size, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from .block_masks import PADDING, TokenTags, dense_mask
from .canvas_diffusionvl import Canvas
from .families import MEDIA_INPUTS, TOKEN_TYPE_INPUTS, placeholder_ids
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .generation_output_diffusionvl import DenoisingStep, DiffusionVLGenerationOutput
from .remasking_diffusionvl import Generators, choose_tokens, tokens_to_keep, transfer_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model  # what the mixin is mixed into
else:
    _Model = object

NOISY = 1  # stream id of the window that is being denoised
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


@dataclass
class _Decoding:
    """What the loop carries from forward to forward."""

    settings: DiffusionVLGenerationConfig
    canvas: Canvas
    media: dict[str, Any]  # empty once the prompt is in the cache
    cache: DynamicCache
    cached: TokenTags  # tags of the tokens in the cache
    positions: Tensor  # their positions, the first axis [B, K]
    pending: Tensor  # columns of clean tokens that are not in the cache yet [B, N]
    forwards: Tensor  # [B]
    lengths: Tensor  # answer tokens that are written, up to the end of sequence [B]
    done: Tensor  # rows whose answer has ended [B]
    streamer: BaseStreamer | None
    generator: Generators
    streamed: int = 0  # answer columns that the streamer has got
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
            generation_config: Settings; the model's own `generation_config` if left out, and its special tokens where
                these settings have none.
            streamer: Receives the prompt and each finished block by `put`, and every step by `put_draft` if it has
                one, such as transformers' `TextDiffusionStreamer`.
            generator: Source of randomness where temperature > 0: one for the batch, or one a row, which makes a
                row's samples independent of its batch.
            **kwargs: Settings of `DiffusionVLGenerationConfig` that differ in this call, and the inputs for images
                and videos that the processor gave.

        Returns:
            Sequences [B, P + G], or a `DiffusionVLGenerationOutput` with `return_dict_in_generate`.

        Raises:
            ValueError: A setting is unknown or out of its range, or the inputs can not be read as they are meant.
        """
        settings, media = self._settings(generation_config, kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        state = self._prepare_decoding(input_ids, attention_mask, media, settings, streamer, generator)
        canvas = state.canvas
        if streamer is not None:
            streamer.put(input_ids.cpu())
        for index in range(canvas.windows):
            if index > 0:
                state.pending = torch.cat([state.pending, canvas.window(index - 1)], dim=1)
            self._denoise_block(state, index)
            self._finish_block(state, index)
            if bool(state.done.all()):
                break
        if streamer is not None:
            streamer.end()
        sequences = canvas.ids[:, : canvas.prompt_length + int(state.lengths.max())]
        if not settings.return_dict_in_generate:
            return sequences
        return DiffusionVLGenerationOutput(
            sequences=sequences,
            tokens_per_forward=state.lengths / state.forwards,
            forwards=state.forwards,
            past_key_values=state.cache,
            history=state.history if settings.output_history else None,
        )

    def _settings(
        self, config: DiffusionVLGenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[DiffusionVLGenerationConfig, dict[str, Any]]:
        """Splits keyword arguments into settings and media inputs, and checks the settings against the model."""
        settings = copy.deepcopy(self.generation_config if config is None else config)
        if not isinstance(settings, DiffusionVLGenerationConfig):
            raise ValueError(
                f"generation_config must be a DiffusionVLGenerationConfig, got a {type(settings).__name__}"
            )
        own = self.generation_config
        settings.update(defaults_only=True, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
        known = settings.setting_names
        # The model reads the kind of a token off its id.
        unknown = set(kwargs) - {*known, *MEDIA_INPUTS, *TOKEN_TYPE_INPUTS}
        if unknown:
            raise ValueError(f"generate() does not know {sorted(unknown)}; its settings are {known}")
        settings.update(**{name: value for name, value in kwargs.items() if name in known})
        if settings.pad_token_id is None and settings.eos_token_ids:
            settings.pad_token_id = settings.eos_token_ids[0]
        media = {name: kwargs[name] for name in MEDIA_INPUTS if kwargs.get(name) is not None}
        block_size = self.config.block_size
        if settings.denoising_steps is None:
            settings.denoising_steps = block_size
        if settings.denoising_steps > block_size:
            raise ValueError(
                f"denoising_steps={settings.denoising_steps} exceeds the block size; give 1 to {block_size}"
            )
        return settings, media

    def _prepare_decoding(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        media: dict[str, Any],
        settings: DiffusionVLGenerationConfig,
        streamer: BaseStreamer | None,
        generator: Generators,
    ) -> _Decoding:
        """Checks the prompts and lays them out on a canvas, with nothing in the cache."""
        self._check_prompts(input_ids, attention_mask, media, generator)
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
            settings=settings,
            canvas=canvas,
            media=media,
            # Without the base's config: a cache that forgets what lies before a sliding window can not be cropped.
            cache=DynamicCache(),
            cached=canvas.tags(canvas.start[:, None][:, :0]),
            positions=canvas.position[0][:, :0],
            pending=canvas.prefix(),
            forwards=torch.zeros_like(canvas.start),
            lengths=torch.zeros_like(canvas.start),
            done=torch.zeros_like(canvas.start, dtype=torch.bool),
            streamer=streamer,
            generator=generator,
        )

    def _check_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any], generator: Generators
    ) -> None:
        """Refuses inputs that can not be read as they are meant."""
        if self.training and self.is_gradient_checkpointing:
            raise ValueError("a model in training mode with gradient checkpointing writes no cache; call model.eval()")
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise ValueError(
                f"generate() needs prompts of shape [B, P] with a token at least, got {[*input_ids.shape]}"
            )
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {[*attention_mask.shape]}, the prompts have {[*input_ids.shape]}"
            )
        if not bool(attention_mask[:, -1].all()) or bool((attention_mask.long().diff(dim=1) < 0).any()):
            raise ValueError(
                "generate() needs prompts padded on the left, each with a token at least; "
                "set processor.tokenizer.padding_side='left'"
            )
        placeholders = input_ids.new_tensor(placeholder_ids(self.base.config))
        if bool(torch.isin(input_ids, placeholders).any()) != bool(media):
            given = sorted(media) or "no image or video inputs"
            raise ValueError(
                f"image and video inputs must come with their placeholder tokens {placeholders.tolist()} in the "
                f"prompts, and the other way round; got {given} and {'no placeholders' if media else 'placeholders'}"
            )
        if isinstance(generator, Sequence) and len(generator) != len(input_ids):
            raise ValueError(f"{len(generator)} generators for {len(input_ids)} prompts; give one, or one a prompt")

    def _denoise_block(self, state: _Decoding, index: int) -> None:
        """Denoises one window of every row that is not done, until nothing in it is masked."""
        settings, canvas = state.settings, state.canvas
        window = canvas.window(index)
        ids, _ = canvas.tokens(window)
        masked = canvas.masked.gather(1, window) & ~state.done[:, None]
        # Image features can not be fed without their whole image, so a window that holds placeholders (a prompt
        # that ends in an image, or one block for everything) is run together with all that came before it.
        media_in_window = bool(torch.isin(ids, ids.new_tensor(placeholder_ids(self.base.config))).any())
        if not settings.fused_commit and not media_in_window and state.pending.shape[1]:
            state.forwards += (canvas.tags(state.pending).document != PADDING).any(-1) & ~state.done
            self._run(state, window[:, :0], keep_pending=False)
        for quota in transfer_schedule(canvas.block_size, settings.denoising_steps or canvas.block_size):
            active = masked.any(-1)
            if not bool(active.any()):
                break
            logits = self._run(state, window, keep_pending=media_in_window)
            state.forwards += active
            tokens, confidence = self._draw(state, logits, active)
            keep = tokens_to_keep(confidence, masked, quota, settings.remasking, settings.confidence_threshold)
            ids = torch.where(keep, tokens, ids)
            canvas.ids.scatter_(1, window, ids)
            step_confidence = confidence.masked_fill(~masked, 1.0)
            masked = masked & ~keep
            if settings.output_history:
                step = (ids, masked, step_confidence, window)
                state.history.append(DenoisingStep(index, *(tensor.cpu() for tensor in step)))
            if state.streamer is not None and hasattr(state.streamer, "put_draft"):
                end = min(int(window.max()) + 1 - canvas.prompt_length, settings.max_new_tokens)
                # A copy, for the next step writes to the canvas.
                state.streamer.put_draft(canvas.answer[:, state.streamed : end].to("cpu", copy=True))

    def _run(self, state: _Decoding, window: Tensor, keep_pending: bool) -> Tensor:
        """One forward over the pending clean tokens and a noisy window; the cache keeps the clean ones.

        Returns:
            Logits of the window [B, D, V].
        """
        canvas = state.canvas
        clean, noisy = canvas.tags(state.pending), canvas.tags(window, NOISY)
        query = clean.cat(noisy)
        ids, positions = canvas.tokens(torch.cat([state.pending, window], dim=1))
        logits = self(
            input_ids=ids,
            attention_mask=dense_mask(query, state.cached.cat(query)),
            position_ids=positions,
            past_key_values=state.cache,
            key_positions=torch.cat([state.positions, positions[0]], dim=1),
            logits_to_keep=window.shape[1] or 1,
            use_cache=True,
            **state.media,
        ).logits
        dropped = ids.shape[1] if keep_pending else window.shape[1]
        if dropped:
            state.cache.crop(-dropped)
        if not keep_pending:
            state.cached = state.cached.cat(clean)
            state.positions = torch.cat([state.positions, positions[0][:, : clean.block.shape[1]]], dim=1)
            state.pending = state.pending[:, :0]
            state.media = {}
        return logits

    def _draw(self, state: _Decoding, logits: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Draws tokens and their confidences [B, D] for the active rows; the others' generators stay where they are."""
        settings, generator = state.settings, state.generator
        if isinstance(generator, Sequence):
            generator = [generator[row] for row in active.nonzero()[:, 0].tolist()]
        drawn, sure = choose_tokens(
            logits[active],
            [self.config.mask_token_id, *placeholder_ids(self.base.config)],
            settings.temperature,
            settings.top_k,
            settings.top_p,
            generator,
        )
        tokens, confidence = drawn.new_zeros(logits.shape[:2]), sure.new_zeros(logits.shape[:2])
        tokens[active], confidence[active] = drawn, sure
        return tokens, confidence

    def _finish_block(self, state: _Decoding, index: int) -> None:
        """Marks rows whose answer ended in this window, pads behind the end, and streams what all rows have."""
        settings, canvas = state.settings, state.canvas
        answer = canvas.answer[:, : settings.max_new_tokens]
        ends = torch.isin(answer, answer.new_tensor(settings.eos_token_ids))
        written = canvas.window(index)[:, -1] + 1 - canvas.prompt_length
        state.lengths = torch.where(
            ends.any(-1), ends.long().argmax(-1) + 1, written.clamp(max=settings.max_new_tokens)
        )
        state.done = ends.any(-1) | (written >= settings.max_new_tokens)
        if settings.pad_token_id is not None:
            columns = torch.arange(canvas.answer.shape[1], device=answer.device)
            canvas.answer[state.done[:, None] & (columns >= state.lengths[:, None])] = settings.pad_token_id
        if state.streamer is not None:
            running = state.lengths[~state.done]
            end = int(running.min() if len(running) else state.lengths.max())
            state.streamer.put(answer[:, state.streamed : end].cpu())
            state.streamed = end
