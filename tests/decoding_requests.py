"""Requests of many kinds for an engine, and the answer that each gets alone."""

import random

import torch
from helpers import QUESTION, prompts

from diffusionvl.modeling.draft_canvas import DraftCanvas

LONG = "is there a circle, a triangle or a square in the image, and what color does it have?"
STATIC, DYNAMIC, BOUNDED = "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"


def questions(pictures):
    """Text alone, one image of each size, several images."""
    return [("hi",), (LONG,), *((QUESTION, picture) for picture in pictures), (LONG, pictures[1], pictures[2])]


def settings_of(rng):
    """Settings that differ from request to request."""
    return {
        "max_new_tokens": rng.choice([3, 7, 14, 20]),
        "denoising_steps": rng.choice([1, 2, 4]),
        "remasking": rng.choice([STATIC, DYNAMIC, BOUNDED]),
        "confidence_threshold": rng.choice([0.2, 0.4]),
        "entropy_bound": rng.choice([0.5, 3.0]),
        "sub_block_size": rng.choice([None, None, 2]),
        "eos_token_id": rng.sample(range(10, 400), 15),
        **rng.choice([{}, {}, {"temperature": 1.2}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}]),
    }


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def build_requests(processor, pictures, count):
    """Inputs and settings of requests, each with a seed."""
    rng = random.Random(0)
    inputs = [prompts(processor, question) for question in questions(pictures)]
    return [(inputs[index % len(inputs)], settings_of(rng), index) for index in range(count)]


def ask(engine, request):
    inputs, settings, seed = request
    return engine.add_request(**inputs, **settings, generator=seeded(seed))


def alone(model, request):
    """Answer and forwards of a request that nothing runs beside."""
    inputs, settings, seed = request
    output = model.generate(**inputs, **settings, generator=seeded(seed), return_dict_in_generate=True)
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), int(output.forwards[0])


def drafts_are_often_right(monkeypatch, answers, chance=0.7):
    """Replaces what masks draft by the truth, now and then; a random model's masks never hit it.

    Args:
        monkeypatch: Pytest's.
        answers: The answer to each prompt, by its ids.
        chance: Of each draft to be the truth.
    """
    own, rng = DraftCanvas._draft, random.Random(0)

    def draft(canvas, drafts, alone=False):
        first = len(canvas.ids) - len(canvas.prompt.ids)
        truth = answers[tuple(canvas.prompt.ids)][first : first + len(drafts)]
        drafts = [right if rng.random() < chance else given for right, given in zip(truth, drafts, strict=True)]
        own(canvas, drafts, alone)

    monkeypatch.setattr(DraftCanvas, "_draft", draft)
