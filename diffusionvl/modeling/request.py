"""A request: one prompt, how it is answered, the answer it has so far, and where that answer ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .canvas import Canvas, Shown
from .constraint import Constraint
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
        constraint: Where the answer stands in its grammar; None if it is free.
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
    constraint: Constraint | None = None
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
        """Applies the row's own processors to the logits [M, V] of its wanted columns; its constraint comes after."""
        canvas, ends = self.canvas, self.settings.eos_token_ids
        if self.constraint is not None:
            self.constraint.look(canvas.drafts)
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

    def begin(self, tokenizer: Any) -> None:
        """Writes what the constraint forces before the model's first token, which may be the whole answer."""
        if self.constraint is not None and (new := self._append_forced(self.constraint, [])):
            self._take(new, tokenizer)

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
        if self.constraint is None:
            new = self.canvas.write(tokens, keep)
            self._note(sure)
        else:
            new = self._write_constrained(self.constraint, tokens, keep, sure)
        if new:
            self._take(new, tokenizer)

    def _write_constrained(
        self, constraint: Constraint, tokens: list[int], keep: list[bool], sure: dict[int, float]
    ) -> list[int]:
        """Writes those of the tokens that fit, and the tokens that are forced after them."""
        if self.sampling.decoding == "denoise":
            taken = constraint.settle(tokens, keep)
            tokens = [*taken, *tokens[len(taken) :]]
            new = self.canvas.write(tokens, [place < len(taken) for place in range(len(tokens))])
        else:
            forced = {place: token for place, token in enumerate(constraint.plan) if token is not None}
            tokens = [forced.get(place, token) for place, token in enumerate(tokens)]
            new = self.canvas.write(tokens, [place in forced or kept for place, kept in enumerate(keep)])
            for token in new:
                constraint.advance(token)
                if constraint.ended:
                    break
        self._note(sure)
        new = self._append_forced(constraint, new)
        self.canvas.mend(constraint.mend)
        return new

    def _append_forced(self, constraint: Constraint, new: list[int]) -> list[int]:
        """Writes the tokens that are forced, without a forward, and adds those that are final to new ones."""
        forced = constraint.take()
        while forced:
            part, forced = forced[: self.canvas.open_places], forced[self.canvas.open_places :]
            new = new + self.canvas.append(part)
            self._note({})
        over = constraint.ended or constraint.length >= self.longest
        if over and len(self.tokens) + len(new) < constraint.length:  # in the middle of a block, which is filled up
            new = new + self.canvas.append(constraint.vocabulary.ends[:1] * self.canvas.open_places)
            self._note({})
        return new

    def _note(self, sure: dict[int, float]) -> None:
        """Adds what a step has left to the history, given the confidences of what it chose, by column."""
        if self.settings.output_history:
            self.history.append(_history_of(self.canvas.shown, sure))

    def score(self, scores: list[TokenLogprob]) -> None:
        """Notes the log-probabilities that a step has found for its wanted columns; those of a later step replace them.

        Comes before `receive`, which writes some of these columns.
        """
        self._scored.update(zip(self.canvas.targets, scores, strict=True))

    def _take(self, block: list[int], tokenizer: Any) -> None:
        """Appends final tokens, up to the end of the answer if it lies in them."""
        block = block[: self.longest - len(self.tokens)]
        least = self.settings.min_new_tokens if self.constraint is None else 0  # a grammar's end is the end
        self.tokens, reason = end_of_answer(self.tokens, block, self.settings, tokenizer, least)
        if self.settings.top_logprobs is not None:
            self.logprobs += [self._logprob(place) for place in range(len(self.logprobs), len(self.tokens))]
        if reason is None and len(self.tokens) == self.longest:
            reason = "length"
        if reason is None and self.stopping_criteria:
            ids = torch.tensor([[*self.canvas.prompt.ids, *self.tokens]])
            if any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self.stopping_criteria):
                reason = "criterion"
        if reason is not None:
            self.end(reason)

    def _logprob(self, place: int) -> TokenLogprob:
        """That of a token of the answer; a token that was forced is certain."""
        scored = self._scored.pop(self.prompt_length + place, None)
        forced = self.constraint is not None and place not in self.constraint.free
        return TokenLogprob(0.0, []) if forced or scored is None else scored


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
    before: list[int],
    block: list[int],
    settings: DiffusionVLGenerationConfig,
    tokenizer: Any = None,
    least: int | None = None,
) -> Ended:
    """Cuts an answer after the first token that ends it: an end of sequence, a stop string, or the longest length.

    Args:
        before: Tokens of the answer that do not end it.
        block: Tokens that come after them.
        settings: `eos_token_id`, `stop_strings`, `min_new_tokens` and `max_new_tokens` are read.
        tokenizer: Needed with `stop_strings`, which may begin in one block and end in another.
        least: Number of tokens before which an end of sequence is none; `min_new_tokens` if left out.
    """
    least = settings.min_new_tokens if least is None else least
    tokens = [*before, *block][: settings.max_new_tokens]
    reason: FinishReason | None = "length" if len(tokens) == settings.max_new_tokens else None
    for index in range(max(len(before), least), len(tokens)):
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
