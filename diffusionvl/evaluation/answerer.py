"""A model with its processor that answers questions in batches and keeps count of what they cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..data.prompts import encode
from ..modeling.errors import UserError
from ..objective.corruption import row_generator
from .costs import SpeedRecord
from .decoding import AR, BLOCK_DIFFUSION, Generated, generate, kind_of
from .questions import Message, Prompt, build_prompt
from .settings import Decoding


@dataclass(frozen=True)
class Question:
    """What a benchmark asks.

    Attributes:
        task: Name of the benchmark.
        number: Of the document in it.
        messages: Gives the conversation; images are opened when the question's turn comes.
        repeat: How often the same question stood before this one; samples differ between repeats.
    """

    task: str
    number: int
    messages: Callable[[], Sequence[Message]]
    repeat: int = 0

    @property
    def name(self) -> str:
        """For messages to people."""
        return f"{self.task}, document {self.number}"


@dataclass(frozen=True)
class Answer:
    """An answer and its cost.

    Attributes:
        text: Cut and stripped, as it is scored.
        input_tokens: Of the prompt, image placeholders included.
        output_tokens: That were generated, with the end of sequence.
    """

    text: str
    input_tokens: int
    output_tokens: int


@dataclass
class Answerer:
    """Answers questions with one model.

    Attributes:
        model: AR or block diffusion, in eval mode on its device.
        processor: The model's, padding on the left.
        prompt_form: See `build_prompt`.
        postprocess: See `finish`.
        system_prompt: Put in front of every conversation if it is not empty.
        seed: Of the draws where the temperature is not 0.
        frames: Which frames of a video are taken; see `build_prompt`.
        speeds: Costs so far, a record a task.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    prompt_form: str = "messages"
    postprocess: str = "none"
    system_prompt: str = ""
    seed: int = 0
    frames: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, SpeedRecord] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`ar` or `block_diffusion`."""
        return kind_of(self.model)

    def prompt(self, question: Question) -> Prompt:
        """Opens a question's images and lays out its turns."""
        return build_prompt(question.messages(), question.name, self.prompt_form, self.system_prompt, self.frames)

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Answers one batch of questions of one task.

        The answer to a question does not depend on the others.

        Args:
            questions: Of one task.
            decoding: How.
        """
        start = time.perf_counter()
        prompts = [self.prompt(question) for question in questions]
        answers: list[Answer | None] = [None] * len(questions)
        speed = SpeedRecord(requests=len(questions))
        for rows in self._batches(prompts, decoding):
            chosen = [prompts[row] for row in rows]
            lengths, generated = self._generate(chosen, [questions[row] for row in rows], decoding)
            texts = self.processor.tokenizer.batch_decode(generated.new, skip_special_tokens=True)
            for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
                answers[row] = Answer(
                    finish(text, decoding.until, self.postprocess), lengths[index], int(generated.lengths[index])
                )
                kept = reference_answer(text, decoding.until)
                speed.text_tokens += len(self.processor.tokenizer(kept, add_special_tokens=False)["input_ids"])
            speed.generated_tokens += int(generated.lengths.sum())
            speed.forwards += int(generated.forwards.sum())
            speed.generate_seconds += generated.seconds
            speed.first_block_seconds += generated.first_seconds * len(rows)
        speed.loop_seconds = time.perf_counter() - start
        self.speeds.setdefault(questions[0].task, SpeedRecord()).add(speed)
        return [answer for answer in answers if answer is not None]

    def _batches(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[list[int]]:
        """Rows that go through the model together: processors take no batch in which some rows have no image.

        Nor does the model join rows of images with rows of videos.
        """
        if self.kind == AR and decoding.samples:  # transformers draws for the whole batch from one source
            yield from ([row] for row in range(len(prompts)))
            return
        alike: dict[tuple[bool, bool], list[int]] = {}
        for row, prompt in enumerate(prompts):
            alike.setdefault((bool(prompt.record.images), bool(prompt.record.videos)), []).append(row)
        yield from alike.values()

    def _generate(
        self, prompts: Sequence[Prompt], questions: Sequence[Question], decoding: Decoding
    ) -> tuple[list[int], Generated]:
        """Lengths of the prompts in tokens, and the model's answers."""
        inputs = encode(self.processor, [prompt.record for prompt in prompts])
        lengths = inputs["attention_mask"].sum(-1).tolist()
        extra: dict[str, Any] = {}
        if decoding.samples:
            # A question's draws come from its own number, so that neither batch nor process changes them.
            sources = [row_generator(self.seed, question.repeat, question.number) for question in questions]
            if self.kind == BLOCK_DIFFUSION:
                device = self.model.device
                extra["generator"] = [torch.Generator(device).manual_seed(own.initial_seed()) for own in sources]
            else:
                torch.manual_seed(sources[0].initial_seed())
        return lengths, generate(
            self.model, inputs, decoding.until, self.processor.tokenizer, **decoding.generate, **extra
        )


def numbered(questions: Sequence[tuple[str, int]]) -> list[int]:
    """How often each (task, document) stood before in the list."""
    counters: dict[tuple[str, int], count[int]] = {}
    return [next(counters.setdefault(question, count())) for question in questions]


POSTPROCESSING = ("none", "reference")


def finish(text: str, until: Sequence[str], postprocess: str) -> str:
    """Cuts and strips a decoded answer.

    Args:
        text: Without special tokens.
        until: Texts that end it.
        postprocess: `none`: cut in front of the first of `until` and stripped. `reference`: as the reference
            implementation does, see `reference_answer`.

    Raises:
        UserError: `postprocess` is unknown.
    """
    if postprocess not in POSTPROCESSING:
        raise UserError(f"postprocess must be one of {POSTPROCESSING}, got {postprocess!r}")
    return reference_answer(text, until) if postprocess == "reference" else cut(text, until).strip()


def cut(text: str, until: Sequence[str]) -> str:
    """The text in front of the first of `until` that it holds."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]


def reference_answer(text: str, until: Sequence[str] = ()) -> str:
    """What the reference's evaluation keeps: the first line, without one trailing period.

    It cuts a caption of several paragraphs after the first one.
    """
    return cut(text, ["\n", *until]).strip().removesuffix(".")
