"""Right answers, forwards and speed of AR and block-diffusion models on questions of one turn.

Models that are compared answer the same batches in turn: images are read and prepared once, and what else the machine
does slows all of them alike.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from diffusionvl.data import prompts
from diffusionvl.data.images import open_image
from diffusionvl.evaluation import decoding
from diffusionvl.evaluation.decoding import Generated
from diffusionvl.modeling.errors import UserError
from studies.quickstart.easy_vqa import Record

MAX_NEW_TOKENS = 96  # twice the longest answer of easy-VQA


@dataclass(frozen=True)
class Contender:
    """A model and how it decodes.

    Attributes:
        name: For tables and charts.
        model: AR, decoded greedily with a KV cache, or block diffusion.
        settings: Arguments of its `generate`.
    """

    name: str
    model: PreTrainedModel
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What one contender did with some records, which keep their order.

    Attributes:
        name: The contender's.
        answers: Decoded and stripped.
        correct: Whether each answer is exactly the record's.
        tokens: Generated tokens; the end of sequence counts.
        forwards: Forwards, summed over the rows that took part in them.
        generate_seconds: Time inside `generate`.
        seconds: The same, and its share of preparing and decoding.
    """

    name: str
    answers: list[str]
    correct: list[bool]
    tokens: int = 0
    forwards: int = 0
    generate_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def forwards_per_token(self) -> float:
        """1 for an AR model."""
        return self.forwards / self.tokens

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second inside `generate`."""
        return self.tokens / self.generate_seconds


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    records: Sequence[Record],
    batch_size: int,
    name: str = "",
    **settings: Any,
) -> Result:
    """Lets one model answer records.

    Args:
        model: AR or block diffusion, in eval mode.
        processor: The model's, padding on the left.
        records: Of one question and one answer each.
        batch_size: Questions that are answered together.
        name: Of the result; what kind of model it is if left out.
        **settings: Of `generate`; at most 96 new tokens if nothing else is said.

    Raises:
        UserError: There are no records, or `generate` does not know a setting.
    """
    return compare([Contender(name or kind_of(model, settings), model, settings)], processor, records, batch_size)[0]


def compare(
    contenders: Sequence[Contender], processor: ProcessorMixin, records: Sequence[Record], batch_size: int
) -> list[Result]:
    """Lets several models answer the same records, batch by batch.

    Args:
        contenders: Whose prompts are the same in tokens, such as an AR model and its translation.
        processor: Of all, padding on the left.
        records: Of one question and one answer each.
        batch_size: Questions that are answered together.

    Raises:
        UserError: There are no records, or `generate` does not know a setting.
    """
    if not records:
        raise UserError("there are no records to evaluate")
    results = [Result(one.name, [""] * len(records), [False] * len(records)) for one in contenders]
    # Questions of one length need little padding, and their answers tend to end together.
    order = sorted(range(len(records)), key=lambda index: len(question(records[index])))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        start = time.perf_counter()
        inputs = encode(processor, [records[index] for index in chosen])
        prepared = time.perf_counter() - start
        for one, result in zip(contenders, results, strict=True):
            start = time.perf_counter()
            generated = generate(one.model, inputs, **one.settings)
            texts = processor.tokenizer.batch_decode(generated.new, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                result.answers[index] = text.strip()
                result.correct[index] = text.strip() == answer(records[index])
            result.tokens += int(generated.lengths.sum())
            result.forwards += int(generated.forwards.sum())
            result.generate_seconds += generated.seconds
            result.seconds += prepared + time.perf_counter() - start
    return results


def compare_speed(
    contenders: Sequence[Contender], processor: ProcessorMixin, records: Sequence[Record], warmup: int = 2
) -> list[float]:
    """Generated tokens a second at batch size 1, the median over the questions.

    This, on the same threads, is the honest comparison of an AR with a block-diffusion model: large batches keep the
    machine busy whichever way a model decodes. The models answer each question in turn.

    Args:
        contenders: To be compared.
        processor: Of all.
        records: A few dozen will do.
        warmup: Of the records, how many are answered first without being timed.

    Raises:
        UserError: No record is left to be timed.
    """
    if len(records) <= warmup:
        raise UserError(f"{len(records)} records leave nothing to time after {warmup} to warm up; give more")
    speeds: list[list[float]] = [[] for _ in contenders]
    for index, record in enumerate(records):
        inputs = encode(processor, [record])
        for one, own in zip(contenders, speeds, strict=True):
            generated = generate(one.model, inputs, **one.settings)
            if index >= warmup:
                own.append(int(generated.lengths.sum()) / generated.seconds)
    return [statistics.median(own) for own in speeds]


def generate(model: PreTrainedModel, inputs: BatchFeature, **settings: Any) -> Generated:
    """Answers a batch, of at most 96 new tokens if `settings` say nothing else."""
    return decoding.generate(model, inputs, **{"max_new_tokens": MAX_NEW_TOKENS, **settings})


def kind_of(model: PreTrainedModel, settings: dict[str, Any]) -> str:
    """`AR`, or the remasking of a block-diffusion model: `static` or `dynamic`."""
    if decoding.kind_of(model) == decoding.AR:
        return "AR"
    remasking: str = settings.get("remasking", model.generation_config.remasking)
    return remasking.rpartition("_")[2]


def question(record: Record) -> str:
    """The text of a record's first turn."""
    return " ".join(part["text"] for part in record["messages"][0]["content"] if part["type"] == "text")


def answer(record: Record) -> str:
    """The text of a record's second turn: the official answer."""
    return " ".join(part["text"] for part in record["messages"][1]["content"] if part["type"] == "text").strip()


def encode(processor: ProcessorMixin, records: Sequence[Record]) -> BatchFeature:
    """Questions with their images as a batch of inputs, [B, P] tokens padded on the left."""
    return prompts.encode(processor, [_asked(record) for record in records])


def _asked(record: Record) -> prompts.Record:
    """The first turn of a record, its pictures opened."""
    pictures = map(_open, record.get("images", ()))
    (turn,) = record["messages"][:1]
    content = [{**part, "image": next(pictures)} if part["type"] == "image" else part for part in turn["content"]]
    return prompts.Record([{**turn, "content": content}], record["id"])


@lru_cache(maxsize=4096)  # many questions share an image
def _open(path: str) -> Image.Image:
    return open_image(path, "test record")
