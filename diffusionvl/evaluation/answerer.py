"""A model with its processor that answers questions, many at a time, and counts what they cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..data.prompts import encode, pad_left
from ..modeling.engine import Engine
from ..modeling.errors import UserError
from ..objective.corruption import row_generator
from . import AR
from .costs import Cost, TaskCost
from .decoding import Answered, answer_batch
from .feeding import answer_continuously
from .kinds import kind_of
from .questions import Prompt
from .settings import Decoding

MAX_LENGTH = 2**20  # tokens of a row of the engine, whose memory grows with what rows really hold


@dataclass(frozen=True)
class Question:
    """A question that is to be answered.

    Attributes:
        task: Name of the benchmark, under which costs are counted.
        number: Number of the document in the benchmark.
        prompt: Writes the prompt; images are not opened before the question's turn.
        repeat: Number of times that the same question was asked before this one; samples differ between repeats.
    """

    task: str
    number: int
    prompt: Callable[[], Prompt]
    repeat: int = 0

    @property
    def name(self) -> str:
        """The question's name in error messages."""
        return f"{self.task}, document {self.number}"


@dataclass(frozen=True)
class Answer:
    """An answer and its cost.

    Attributes:
        text: The text that is scored: cut and stripped.
        input_tokens: Number of tokens of the prompt, image placeholders included.
        cost: Tokens, forwards and seconds.
    """

    text: str
    input_tokens: int
    cost: Cost


@dataclass
class Answerer:
    """Answers questions with one model.

    Attributes:
        model: An AR or block-diffusion model, in eval mode on its device.
        processor: The model's processor, which pads on the left.
        postprocess: How answers are cut; see `finish`.
        seed: Seed of the draws where the temperature is not 0.
        costs: Costs so far, by task.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    postprocess: str = "none"
    seed: int = 0
    costs: dict[str, TaskCost] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the model: `ar` or `block_diffusion`."""
        return kind_of(self.model)

    def answers(
        self, questions: Sequence[Question], decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, Answer | UserError]]:
        """Answers questions of one task, and yields each answer with the question's index as soon as it has ended.

        The answer to a question does not depend on the others. In the place of an answer stands the error of a question
        that cannot be asked, such as one with a broken picture.

        Args:
            questions: Questions of one task.
            decoding: How they are answered.
            batch_size: Number of questions that are answered together.
        """
        cost = self.costs.setdefault(questions[0].task, TaskCost(processes=1))
        tokenizer, start = self.processor.tokenizer, time.perf_counter()
        found = self._in_batches if self.kind == AR else self._through_the_engine
        for index, prompt_length, answered in found(questions, decoding, batch_size):
            if isinstance(answered, UserError):
                yield index, answered
                continue
            tokens, own = answered
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            kept = reference_answer(text, decoding.until)
            cost.add(own)
            cost.text_tokens += len(tokenizer(kept, add_special_tokens=False)["input_ids"])
            cost.loop_seconds += time.perf_counter() - start
            yield index, Answer(finish(text, decoding.until, self.postprocess), prompt_length, own)
            start = time.perf_counter()

    def _through_the_engine(
        self, questions: Sequence[Question], decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, int, Answered | UserError]]:
        """Yields index, number of prompt tokens and answer of each question, by continuous batching."""
        lengths: dict[int, int] = {}

        def prompt(index: int) -> dict[str, Any]:
            inputs = encode(self.processor, [questions[index].prompt().record])
            lengths[index] = inputs["input_ids"].shape[1]
            settings = {**decoding.generate, "stop_strings": list(decoding.until) or None}
            if decoding.samples:
                seed = self._draws(questions[index]).initial_seed()
                settings["generator"] = torch.Generator(self.model.device).manual_seed(seed)
            return {**inputs, **settings}

        fused = decoding.generate.get("fused_commit", self.model.generation_config.fused_commit)
        engine = Engine(
            self.model, batch_size, MAX_LENGTH, batch_size, tokenizer=self.processor.tokenizer, fused_commit=fused
        )
        for index, answered in answer_continuously(engine, range(len(questions)), prompt):
            yield index, lengths.pop(index, 0), answered

    def _in_batches(
        self, questions: Sequence[Question], decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, int, Answered | UserError]]:
        """Yields the same for an AR model, in fixed batches; those with videos and those without apart."""
        tokenizer = self.processor.tokenizer
        for begin in range(0, len(questions), batch_size):
            batches: dict[Any, dict[int, BatchFeature]] = {}
            for index in range(begin, min(begin + batch_size, len(questions))):
                try:
                    record = questions[index].prompt().record
                    # transformers draws for a whole batch from one source
                    alike = index if decoding.samples else bool(record.videos)
                    batches.setdefault(alike, {})[index] = encode(self.processor, [record])
                except UserError as error:  # noqa: PERF203
                    yield index, 0, error
            for rows in batches.values():
                if decoding.samples:
                    torch.manual_seed(self._draws(questions[next(iter(rows))]).initial_seed())
                inputs = pad_left([*rows.values()], tokenizer.pad_token_id or 0)
                generated = answer_batch(self.model, inputs, decoding.until, tokenizer, **decoding.generate)
                for place, (index, row) in enumerate(rows.items()):
                    yield index, row["input_ids"].shape[1], generated.row(place)

    def _draws(self, question: Question) -> torch.Generator:
        """Returns the source of a question's draws: its own number, so that neither batch nor process changes them."""
        return row_generator(self.seed, question.repeat, question.number)


def numbered(questions: Sequence[tuple[str, int]]) -> list[int]:
    """Counts how often each (task, document) stood before in the list."""
    counters: dict[tuple[str, int], count[int]] = {}
    return [next(counters.setdefault(question, count())) for question in questions]


POSTPROCESSING = ("none", "reference")


def finish(text: str, until: Sequence[str], postprocess: str) -> str:
    """Cuts and strips a decoded answer.

    Args:
        text: The answer without special tokens.
        until: Texts that end it.
        postprocess: `none`: cut before the first of `until` and stripped. `reference`: as the reference implementation
            does it, see `reference_answer`.

    Raises:
        UserError: `postprocess` is unknown.
    """
    if postprocess not in POSTPROCESSING:
        raise UserError(f"postprocess must be one of {POSTPROCESSING}, got {postprocess!r}")
    return reference_answer(text, until) if postprocess == "reference" else cut(text, until).strip()


def cut(text: str, until: Sequence[str]) -> str:
    """Returns the text before the first of `until` that it contains."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]


def reference_answer(text: str, until: Sequence[str] = ()) -> str:
    """Returns what the reference's evaluation keeps of an answer: its first line, without one trailing period.

    A caption of several paragraphs is cut after the first one.
    """
    return cut(text, ["\n", *until]).strip().removesuffix(".")
