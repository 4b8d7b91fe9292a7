"""A question of a run with its images and answer, kept in files for the report."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..data.images import open_image
from ..modeling.errors import UserError

if TYPE_CHECKING:
    from .answerer import Question

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


def write_card(folder: Path, question: "Question", answer: str, film: str = "") -> None:
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


def read_cards(folder: Path) -> list[Card]:
    """Reads all cards below a folder, by task and number.

    Raises:
        UserError: A card is broken.
    """
    cards = []
    for path in folder.glob("*/*.json"):
        try:
            cards.append(Card(**json.loads(path.read_text(encoding="utf-8"))))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:  # noqa: PERF203
            raise UserError(f"{path} is broken ({error}); delete it") from error
    return sorted(cards, key=lambda card: (card.task, card.number))


def open_card_image(folder: Path, card: Card) -> Image.Image | None:
    """Opens a card's first image, if it has one."""
    if not card.images:
        return None
    return open_image(str(folder / card.task / card.images[0]), f"card {card.number} of {card.task}")
