"""Chooses the questions of a run that the report shows, and films one answer."""

from collections.abc import Sequence
from typing import Any

from ..data.prompts import encode
from ..drawing.film import film_html
from . import BLOCK_DIFFUSION
from .answerer import Answerer, Question
from .decoding import on_model
from .settings import Decoding


def spread(numbers: Sequence[int], samples: int) -> list[int]:
    """Chooses at most `samples` of the documents: every 1st, 2nd, 4th, ... of the task.

    So all processes, and runs with other limits, keep the same ones, and the report can set them side by side.
    """
    stride = 1
    while max(numbers) // stride >= samples:
        stride *= 2
    return sorted({number for number in numbers if number % stride == 0})


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
