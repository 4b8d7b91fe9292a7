"""A request: one prompt, how it is answered, the answer it has so far, and where that answer ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .canvas import Canvas, Shown
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .logprobs import TokenLogprob
from .sampling import Sampling


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


class Chunk(NamedTuple):
    """A part of an answer that `Engine.stream` yields.

    Attributes:
        tokens: Final tokens that follow those before them; of a draft, the block as it is, with mask tokens.
        draft: Whether the next chunk replaces these tokens.
    """

    tokens: list[int]
    draft: bool = False


FinishReason = Literal["eos", "stop_string", "length", "time", "criterion", "abort", "error", "not_a_number"]


@dataclass(eq=False)
class Request:
    """One row: what `Engine.add_request` returns. The engine writes it; everybody else reads it.

    Attributes:
        settings: How the prompt is answered.
        canvas: The prompt, the answer and what comes after it.
        longest: Number of tokens of the longest answer: `max_new_tokens`, or what positions the model has left.
        generator: Source of randomness where the temperature is above 0; torch's own if left out.
        deadline: When its time is up, by the engine's clock.
        logits_processor: Processors of transformers, for the logits of the places being written.
        stopping_criteria: Criteria of transformers, asked whenever the answer has grown.
        tokens: The answer so far, final: whole blocks where it is denoised, and at its end an end of sequence or the
            token that completes a stop string.
        finish_reason: Why the answer ended: `eos`, `stop_string`, `length`, `time`, `criterion`, `abort`, `error`
            where something raised for it, or `not_a_number` where its scores were not; None while it goes on.
        error: What was raised, with `error`.
        forwards: Number of forwards that it took part in, reading the prompt included.
        logprobs: Of each of the tokens, with `top_logprobs`: in the step that wrote it, or that verified it.
        history: The denoising steps, [1, D] each, with `output_history`; columns count from the prompt's first token.
        reused: Number of prompt tokens whose keys and values are those of an earlier row.
        pictures: Where its images and videos stand; None until its prompt is about to be read, and where they cannot be
            told from another row's.
    """

    settings: DiffusionVLGenerationConfig
    canvas: Canvas
    longest: int
    generator: torch.Generator | None = None
    deadline: float = float("inf")
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
    stopping_criteria: Sequence[Callable[..., Any]] = ()
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    forwards: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    history: list[DenoisingStep] = field(default_factory=list)
    reused: int = 0
    pictures: list[Any] | None = None

    def __post_init__(self) -> None:
        self.sampling = Sampling(*(getattr(self.settings, name) for name in Sampling._fields))
        self._scored: dict[int, TokenLogprob] = {}
        self.seed = 0
        if self.sampling.decoding != "denoise" and self.sampling.temperature > 0:
            device = "cpu" if self.generator is None else self.generator.device
            self.seed = int(torch.randint(2**62, (), generator=self.generator, device=device))

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def prompt_length(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.canvas.prompt.ids)

    @property
    def block(self) -> int:
        """Index of the block that is being denoised."""
        return self.canvas.block

    @property
    def step(self) -> int:
        """Number of steps that this block has had."""
        return self.canvas.step

    @property
    def draft(self) -> list[int]:
        """Tokens after the answer so far that may still change, the mask id where still masked."""
        return self.canvas.written[: self.longest - len(self.tokens)]

    def end(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends the answer, unless it has ended."""
        if not self.finished:
            self.finish_reason, self.error = reason, error

    def adjust(self, logits: Tensor) -> Tensor:
        """Applies the row's own processors to the logits [M, V] of its wanted columns."""
        canvas, ends = self.canvas, self.settings.eos_token_ids
        if ends and self.settings.min_new_tokens:
            first = self.prompt_length + self.settings.min_new_tokens
            early = [place for place, column in enumerate(canvas.targets) if column < first]
            logits = logits.clone()
            logits[torch.tensor(early, dtype=torch.long)[:, None], ends] = -torch.inf
        if not self.logits_processor:
            return logits
        parts, begin = [], 0
        for known, places in groupby(canvas.known):  # processors take rows of one length
            end = begin + len([*places])
            ids = torch.tensor([canvas.ids[:known]], device=logits.device).expand(end - begin, -1)
            part = logits[begin:end]
            for processor in self.logits_processor:
                part = processor(ids, part)
            parts.append(part)
            begin = end
        return torch.cat(parts)

    def receive(self, tokens: list[int], confidences: list[float], keep: list[bool], tokenizer: Any) -> None:
        """Writes what a step has found for the canvas's wanted columns.

        Args:
            tokens: The token drawn for each column.
            confidences: The confidence in each, not a number where the scores are not.
            keep: Whether each is kept.
            tokenizer: Decodes the answer to look for stop strings; not needed without them.
        """
        self.forwards += 1
        if any(confidence != confidence for confidence in confidences):
            self.end("not_a_number")
            return
        sure = dict(zip(self.canvas.targets, confidences, strict=True))
        new = self.canvas.write(tokens, keep)
        if self.settings.output_history:
            self.history.append(_history_of(self.canvas.shown, sure))
        if new:
            self._take(new, tokenizer)

    def score(self, scores: list[TokenLogprob]) -> None:
        """Notes the log-probabilities that a step has found for its wanted columns; those of a later step replace them.

        Comes before `receive`, which writes some of these columns.
        """
        self._scored.update(zip(self.canvas.targets, scores, strict=True))

    def _take(self, block: list[int], tokenizer: Any) -> None:
        """Appends final tokens, up to the end of the answer if it lies in them."""
        block = block[: self.longest - len(self.tokens)]
        self.tokens, reason = end_of_answer(self.tokens, block, self.settings, tokenizer)
        if self._scored:
            columns = range(self.prompt_length + len(self.logprobs), self.prompt_length + len(self.tokens))
            self.logprobs += [self._scored.pop(column) for column in columns]
        if reason is None and len(self.tokens) == self.longest:
            reason = "length"
        if reason is None and self.stopping_criteria:
            ids = torch.tensor([[*self.canvas.prompt.ids, *self.tokens]])
            if any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self.stopping_criteria):
                reason = "criterion"
        if reason is not None:
            self.end(reason)


def _history_of(shown: Shown, sure: dict[int, float]) -> DenoisingStep:
    """What a step leaves, given the confidences of what it chose, by column."""
    return DenoisingStep(
        shown.block,
        tokens=torch.tensor([shown.tokens]),
        masked=torch.tensor([shown.masked]),
        confidence=torch.tensor([[sure.get(column, 1.0) for column in shown.columns]]),
        columns=torch.tensor([[*shown.columns]]),
    )


class Ended(NamedTuple):
    """An answer, and why it ends there; None if it does not."""

    tokens: list[int]
    reason: FinishReason | None


def end_of_answer(
    before: list[int], block: list[int], settings: DiffusionVLGenerationConfig, tokenizer: Any = None
) -> Ended:
    """Cuts an answer after the first token that ends it: an end of sequence, a stop string, or the longest length.

    Args:
        before: Tokens of the answer that do not end it.
        block: Tokens that come after them.
        settings: `eos_token_id`, `stop_strings`, `min_new_tokens` and `max_new_tokens` are read.
        tokenizer: Needed with `stop_strings`, which may begin in one block and end in another.
    """
    tokens = [*before, *block][: settings.max_new_tokens]
    reason: FinishReason | None = "length" if len(tokens) == settings.max_new_tokens else None
    for index in range(max(len(before), settings.min_new_tokens), len(tokens)):
        if tokens[index] in settings.eos_token_ids:
            tokens, reason = tokens[: index + 1], "eos"
            break
    if settings.stop_strings and _stops(tokens, settings, tokenizer):
        for end in range(len(before) + 1, len(tokens) + 1):
            if _stops(tokens[:end], settings, tokenizer):
                return Ended(tokens[:end], "stop_string")
    return Ended(tokens, reason)


def _stops(tokens: list[int], settings: DiffusionVLGenerationConfig, tokenizer: Any) -> bool:
    """Whether the text of these tokens holds a stop string, which may itself be or hold a special token."""
    texts = [tokenizer.decode(tokens, skip_special_tokens=skip) for skip in (True, False)]
    return any(stop in text for stop in settings.stop_string_list for text in texts)
