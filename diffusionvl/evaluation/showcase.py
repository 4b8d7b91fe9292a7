"""Keeps a few questions of a run with their images and answers for the report, one with the film of its answer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.prompts import encode
from ..drawing.film import film_html
from . import BLOCK_DIFFUSION
from .answerer import Answerer, Question
from .decoding import on_model
from .settings import Decoding

LONGEST_EDGE = 448


@dataclass(frozen=True)
class Card:
    """One question and its answer.

    Attributes:
        task: Name of the benchmark.
        number: Number of the document in the benchmark.
        question: Text of the prompt.
        answer: The answer that is scored.
        images: Names of picture files beside the card.
        film: A film as HTML, or nothing.
    """

    task: str
    number: int
    question: str
    answer: str
    images: list[str]
    film: str = ""


def spread(numbers: Sequence[int], samples: int) -> list[int]:
    """Chooses at most `samples` of the documents: every 1st, 2nd, 4th, ... of the task.

    So all processes, and runs with other limits, keep the same ones, and the report can set them side by side.
    """
    stride = 1
    while max(numbers) // stride >= samples:
        stride *= 2
    return sorted({number for number in numbers if number % stride == 0})


def write_card(folder: Path, question: Question, answer: str, film: str = "") -> None:
    """Writes one card and its images into `folder / task`."""
    prompt = question.prompt()
    place = folder / question.task
    place.mkdir(parents=True, exist_ok=True)
    names = []
    for index, image in enumerate(prompt.images):
        small = image.copy()
        small.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        names.append(f"{question.number}-{index}.png")
        small.save(place / names[-1])
    card = Card(question.task, question.number, prompt.question, answer, names, film)
    (place / f"{question.number}.json").write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")


def make_film(answerer: Answerer, question: Question, decoding: Decoding) -> str:
    """Answers a question once more and films it; returns nothing for an AR model or where tokens are drawn."""
    if answerer.kind != BLOCK_DIFFUSION or decoding.samples:
        return ""
    prompt = question.prompt()
    model: Any = answerer.model
    inputs = encode(answerer.processor, [prompt.record])
    output = model.generate(
        **on_model(inputs, model), **decoding.generate, return_dict_in_generate=True, output_history=True
    )
    length = inputs["input_ids"].shape[1]
    image = prompt.images[0] if prompt.images else None
    shown = output.sequences.shape[1] - length
    return film_html(output.history, answerer.processor.tokenizer, length, image, prompt.question, shown)


def read_cards(folder: Path) -> list[Card]:
    """Reads all cards below a folder, by task and number."""
    cards = [Card(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*/*.json")]
    return sorted(cards, key=lambda card: (card.task, card.number))


def open_card_image(folder: Path, card: Card) -> Image.Image | None:
    """Opens a card's first image, if it has one."""
    if not card.images:
        return None
    with Image.open(folder / card.task / card.images[0]) as file:
        return file.convert("RGB")
