"""`generate`: answers a batch of prompts by an engine of its own.

The output fields, the generation config and the streamer follow transformers' own block-diffusion model
(`models/diffusion_gemma`). Legend: B batch, P padded prompt, G generated tokens, D block size.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, cached_file

from .draft_canvas import DraftCanvas
from .engine import Engine
from .errors import UserError
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .inputs import read_call
from .logprobs import TokenLogprob
from .request import DenoisingStep, Request
from .sampling import Generators


@dataclass
class DiffusionVLGenerationOutput(ModelOutput):
    """Output of `generate`.

    Attributes:
        sequences: Prompts and answers [B, P + G]; padded after each row's end of sequence.
        tokens_per_forward: Answer tokens (the end of sequence counts, padding does not) a forward, for each row [B].
        forwards: Forwards that each row took part in, reading the prompt included [B].
        acceptance: Number of forwards of each row that wrote n tokens [B, n]; None where blocks are denoised.
        logprobs: What the model thought of each token of each answer, with `top_logprobs`.
        history: The denoising steps, with `output_history`.
    """

    sequences: Tensor | None = None
    tokens_per_forward: Tensor | None = None
    forwards: Tensor | None = None
    acceptance: Tensor | None = None
    logprobs: list[list[TokenLogprob]] | None = None
    history: list[DenoisingStep] | None = None


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model  # what the mixin is mixed into
else:
    _Model = object

DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


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

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: DiffusionVLGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        generator: Generators = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Tensor | DiffusionVLGenerationOutput:
        """Answers prompts, a block of tokens at a time.

        A row's answer does not depend on what else is in the batch: rows have their own block grid, schedule and end.

        Args:
            input_ids: Prompts [B, P], padded on the left.
            attention_mask: 1 for tokens, 0 for padding [B, P]; left out, padding ids are padding, as in transformers.
            generation_config: Settings, also a stock `GenerationConfig`; the model's own `generation_config` if left
                out, and its special tokens where these settings have none.
            streamer: Receives the prompt and each finished block by `put`, and every step by `put_draft` if it has
                one, such as transformers' `TextDiffusionStreamer`.
            generator: Source of randomness where the temperature is above 0: one for the batch, or one for each prompt,
                which makes a row's samples independent of its batch. On the model's device.
            tokenizer: Needed for `stop_strings` and constraints.
            **kwargs: Settings (`SETTINGS`) that differ in this call, the inputs for images and videos that the
                processor gave, and two lists of transformers: `logits_processor`, which sees the logits of the places
                being written, and `stopping_criteria`, which are asked after each block.

        Returns:
            Sequences [B, P + G], or a `DiffusionVLGenerationOutput` with `return_dict_in_generate`; B counts
            `num_return_sequences`.

        Raises:
            UserError: A setting is unknown or out of its range, the inputs cannot be read as they are meant, or the
                model's scores are not numbers.
        """
        call = read_call(self, input_ids, attention_mask, generation_config, generator, kwargs)
        settings = call.settings
        if settings.num_return_sequences > 1:
            input_ids = input_ids.repeat_interleave(settings.num_return_sequences, dim=0)
        padding, prompt, rows = settings.pad_token_id or 0, input_ids.shape[1], len(input_ids)
        length = prompt + settings.max_new_tokens + self.config.block_size  # in whole blocks
        engine = Engine(self, rows, length, rows, tokenizer=tokenizer, fused_commit=settings.fused_commit)
        batches = [engine.add_call(call) for _ in range(settings.num_return_sequences)]
        requests = [request for answers in zip(*batches, strict=True) for request in answers]
        if streamer is None:
            while engine.busy:
                engine.step()
        else:
            _BatchStream(streamer, engine, requests, padding).run(input_ids)
        check_answers(requests)
        answers = _rectangle([request.tokens for request in requests], padding)
        sequences = torch.cat([input_ids, answers.to(input_ids)], dim=1)
        if not settings.return_dict_in_generate:
            return sequences
        history = _join_histories(requests, prompt, padding) if settings.output_history else None
        return _output_of(sequences, requests, history)


class _BatchStream:
    """Feeds a streamer of transformers, which wants columns of the whole batch: those that all rows have."""

    def __init__(self, streamer: BaseStreamer, engine: Engine, requests: list[Request], padding: int) -> None:
        self.streamer, self.engine, self.requests, self.padding = streamer, engine, requests, padding
        self.sent = 0

    def run(self, input_ids: Tensor) -> None:
        """Answers the prompts [B, P], which come first."""
        self.streamer.put(input_ids.cpu())
        while self.engine.busy:
            self.engine.step()
            self.send()
        self.streamer.end()

    def send(self) -> None:
        """Shows the blocks as they are now, if the streamer can; then puts the columns that are done in every row."""
        running = [request for request in self.requests if not request.finished]
        if hasattr(self.streamer, "put_draft"):
            drafts = [
                [*request.tokens, *(self.engine.draft(request) if request.step else [])] for request in self.requests
            ]
            self.streamer.put_draft(self._columns(drafts, max(map(len, drafts))))
        lengths = [len(request.tokens) for request in running or self.requests]
        end = min(lengths) if running else max(lengths)
        if end > self.sent:
            self.streamer.put(self._columns([request.tokens for request in self.requests], end))
            self.sent = end

    def _columns(self, rows: list[list[int]], end: int) -> Tensor:
        """Columns that have not been put, up to `end` [B, end - sent]; what a row does not have yet is masked."""
        mask = self.engine.model.config.mask_token_id
        fillers = [self.padding if request.finished else mask for request in self.requests]
        filled = [[*row, *[filler] * end][self.sent : end] for row, filler in zip(rows, fillers, strict=True)]
        return torch.tensor(filled, dtype=torch.long)


def check_answers(requests: list[Request]) -> None:
    """Raises what has kept a request from being answered."""
    for request in requests:
        if request.error is not None:
            raise request.error
    broken = [row for row, request in enumerate(requests) if request.finish_reason == "not_a_number"]
    if broken:
        raise UserError(
            f"the model's scores for the prompts {broken} are not numbers; load it in float32 or bfloat16, and check "
            "its weights and the images"
        )


def _output_of(
    sequences: Tensor, requests: list[Request], history: list[DenoisingStep] | None
) -> DiffusionVLGenerationOutput:
    """What `generate` returns with `return_dict_in_generate`."""
    counts = [(len(request.tokens), request.forwards) for request in requests]
    lengths, forwards = torch.tensor(counts, device=sequences.device).unbind(1)
    return DiffusionVLGenerationOutput(
        sequences=sequences,
        tokens_per_forward=lengths / forwards.clamp(min=1),
        forwards=forwards,
        acceptance=_acceptance(requests),
        logprobs=None if requests[0].settings.top_logprobs is None else [request.logprobs for request in requests],
        history=history,
    )


def _acceptance(requests: list[Request]) -> Tensor | None:
    """Number of forwards of each row that wrote 0, 1, 2, ... tokens; the ends of answers count whole."""
    canvases = [request.canvas for request in requests]
    lengths = [torch.tensor(canvas.lengths, dtype=torch.long) for canvas in canvases if isinstance(canvas, DraftCanvas)]
    if not lengths:
        return None
    width = 1 + max(int(own.max()) if len(own) else 0 for own in lengths)
    return torch.stack([own.bincount(minlength=width) for own in lengths])


def _rectangle(rows: list[list[int]], padding: int) -> Tensor:
    """Rows of any lengths as a tensor [B, G], padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], dtype=torch.long)


def _join_histories(requests: list[Request], prompt: int, padding: int) -> list[DenoisingStep]:
    """The steps of all rows, block by block, as if rows waited for one another after each block.

    A row that needed fewer steps for a block than others stands still in the rest; after its end it is padding.

    Args:
        requests: The B requests, with histories.
        prompt: P, the column of the padded batch where the answers begin.
        padding: Token after the end of an answer.
    """
    joined: list[DenoisingStep] = []
    by_block = [_steps_by_block(request) for request in requests]
    for block in range(max(len(blocks) for blocks in by_block)):
        for step in range(max(len(blocks[block]) for blocks in by_block if block < len(blocks))):
            rows = []
            for request, blocks in zip(requests, by_block, strict=True):
                if block >= len(blocks):
                    rows.append(_after_the_end(blocks[-1][-1], block, padding))
                elif step < len(blocks[block]):
                    rows.append(blocks[block][step])
                else:
                    last = blocks[block][-1]
                    rows.append(replace(last, confidence=torch.ones_like(last.confidence)))
                rows[-1] = replace(rows[-1], columns=rows[-1].columns + prompt - request.prompt_length)
            fields = zip(*((row.tokens, row.masked, row.confidence, row.columns) for row in rows), strict=True)
            joined.append(DenoisingStep(block, *map(torch.cat, fields)))
    return joined


def _steps_by_block(request: Request) -> list[list[DenoisingStep]]:
    """A request's steps, block by block."""
    return [[*steps] for _, steps in groupby(request.history, key=lambda step: step.block)]


def _after_the_end(last: DenoisingStep, block: int, padding: int) -> DenoisingStep:
    """A row in a block after its end, given its last step."""
    shift = (block - last.block) * last.tokens.shape[1]
    return DenoisingStep(
        block,
        torch.full_like(last.tokens, padding),
        torch.zeros_like(last.masked),
        torch.ones_like(last.confidence),
        last.columns + shift,
    )
