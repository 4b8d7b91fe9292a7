"""A contest of AR and block-diffusion models: right answers, forwards and speed on questions of one turn.

The models answer the same batches in turn: images are read and prepared once, and whatever else the machine does slows
all of them alike.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image
from tqdm import tqdm
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from diffusionvl.data.images import open_image
from diffusionvl.data.prompts import encode
from diffusionvl.data.record import Record
from diffusionvl.evaluation import AR
from diffusionvl.evaluation.costs import Cost
from diffusionvl.evaluation.decoding import Generated, answer_batch
from diffusionvl.evaluation.kinds import kind_of
from diffusionvl.modeling.errors import UserError
from studies.quickstart.easy_vqa import RawRecord

MAX_NEW_TOKENS = 96  # twice the longest answer of easy-VQA


@dataclass(frozen=True)
class Contender:
    """A model and how it decodes.

    Attributes:
        name: Name in tables and charts.
        model: An AR model, decoded greedily with a KV cache, or a block-diffusion model.
        settings: Arguments of its `generate`.
    """

    name: str
    model: PreTrainedModel
    settings: dict[str, Any] = field(default_factory=dict)

    def answer(self, inputs: BatchFeature) -> Generated:
        """Answers a batch, with at most 96 new tokens if the settings do not say otherwise."""
        return answer_batch(self.model, inputs, **{"max_new_tokens": MAX_NEW_TOKENS, **self.settings})


@dataclass
class Result:
    """What one contender did with some records, in the order of the records.

    Attributes:
        name: Name of the contender.
        answers: Answers, decoded and stripped.
        correct: Whether each answer is exactly the record's.
        cost: Tokens, forwards and seconds of all answers.
        busy: Seconds that this process computed for them, on all of its threads; other programs add nothing to it.
    """

    name: str
    answers: list[str]
    correct: list[bool]
    cost: Cost = field(default_factory=Cost)
    busy: float = 0.0

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)

    def share_equal(self, other: "Result") -> float:
        """Share of answers that are another contender's, word for word."""
        pairs = zip(self.answers, other.answers, strict=True)
        return sum(mine == theirs for mine, theirs in pairs) / len(self.answers)


def contest(
    contenders: Sequence[Contender], processor: ProcessorMixin, records: Sequence[RawRecord], batch_size: int
) -> list[Result]:
    """Lets models answer the same records, batch by batch.

    Args:
        contenders: Models whose prompts are the same in tokens, such as an AR model and its translation.
        processor: The processor of all of them, padding on the left.
        records: Records of one question and one answer each.
        batch_size: Number of questions that are answered together.

    Raises:
        UserError: There are no records, or `generate` does not know a setting.
    """
    if not records:
        raise UserError("there are no records to evaluate")
    results = [Result(one.name, [""] * len(records), [False] * len(records)) for one in contenders]
    # Questions of one length need little padding, and their answers tend to end together.
    order = sorted(range(len(records)), key=lambda index: len(question(records[index])))
    with tqdm(total=len(contenders) * len(records), desc=f"answers of {len(contenders)} contenders") as bar:
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            inputs = prompts(processor, [records[index] for index in chosen])
            for one, result in zip(contenders, results, strict=True):
                busy = time.process_time()
                generated = one.answer(inputs)
                result.busy += time.process_time() - busy
                texts = processor.tokenizer.batch_decode(generated.new, skip_special_tokens=True)
                for index, text in zip(chosen, texts, strict=True):
                    result.answers[index] = text.strip()
                    result.correct[index] = text.strip() == answer(records[index])
                result.cost.add(generated.cost)
                bar.update(len(chosen))
    return results


def contest_speed(
    contenders: Sequence[Contender], processor: ProcessorMixin, records: Sequence[RawRecord], warmup: int = 2
) -> list[float]:
    """Returns each contender's generated tokens a second at batch size 1, the median over the questions.

    This, on the same threads, is the honest comparison of an AR with a block-diffusion model: large batches keep the
    machine busy whichever way a model decodes. The models answer each question in turn.

    Args:
        contenders: Models to be compared.
        processor: The processor of all of them.
        records: A few dozen records are enough.
        warmup: Number of records that are answered first without being timed.

    Raises:
        UserError: No record is left to be timed.
    """
    if len(records) <= warmup:
        raise UserError(f"{len(records)} records leave nothing to time after {warmup} to warm up; give more")
    speeds: list[list[float]] = [[] for _ in contenders]
    for index, record in enumerate(tqdm(records, desc="speed at batch size 1")):
        inputs = prompts(processor, [record])
        for one, own in zip(contenders, speeds, strict=True):
            cost = one.answer(inputs).cost
            if index >= warmup:
                own.append(cost.tokens_per_second)
    return [statistics.median(own) for own in speeds]


def way_of(model: PreTrainedModel, settings: dict[str, Any]) -> str:
    """Names a way of decoding: `AR`, or the remasking of a block-diffusion model: `static` or `dynamic`."""
    if kind_of(model) == AR:
        return "AR"
    remasking: str = settings.get("remasking", model.generation_config.remasking)
    return remasking.rpartition("_")[2]


def question(record: RawRecord) -> str:
    """Returns the text of a record's first turn."""
    return " ".join(part["text"] for part in record["messages"][0]["content"] if part["type"] == "text")


def answer(record: RawRecord) -> str:
    """Returns the text of a record's second turn: the official answer."""
    return " ".join(part["text"] for part in record["messages"][1]["content"] if part["type"] == "text").strip()


def prompts(processor: ProcessorMixin, records: Sequence[RawRecord]) -> BatchFeature:
    """Encodes questions with their images as a batch of inputs, [B, P] tokens padded on the left."""
    return encode(processor, [_asked(record) for record in records])


def _asked(record: RawRecord) -> Record:
    """Reads the first turn of a record, its pictures opened."""
    pictures = map(_open, record.get("images", ()))
    (turn,) = record["messages"][:1]
    content = [{**part, "image": next(pictures)} if part["type"] == "image" else part for part in turn["content"]]
    return Record([{**turn, "content": content}], record["id"])


@lru_cache(maxsize=4096)  # many questions share an image
def _open(path: str) -> Image.Image:
    return open_image(path, "test record")
