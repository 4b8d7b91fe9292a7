"""Drafting is never much slower than not drafting, and nearly as fast as the best fixed number of masks."""

import random

import pytest
import torch

from diffusionvl.modeling.canvas import Prompt
from diffusionvl.modeling.draft_canvas import DraftCanvas
from diffusionvl.modeling.draft_pace import DraftPace, Luck


def seconds_of(draft_size, chance, each, pace=None, answers=12, longest=120, seed=0):
    """Seconds of some answers, one after another, where a forward takes 1 + each * tokens, with noise."""
    rng, total = random.Random(seed), 0.0
    for _ in range(answers):
        prompt = Prompt.build(torch.zeros(3).long(), torch.arange(3)[None], torch.arange(3), True, True)
        canvas, written = DraftCanvas(prompt, 9, draft_size, longest, pace), 0
        while written < longest:
            cost = 1 + each * len(canvas.span)
            total += cost
            if pace is not None and canvas.read:
                pace.note_cost(len(canvas.span), cost * rng.choice([1, 1, 1.1, 1.5, 4]))
            canvas.see()
            drafts = len(canvas.written)
            right = [1 if rng.random() < chance else 2 for _ in range(drafts)]
            written += len(canvas.write([*right, 5, *[1] * (len(canvas.wanted) - drafts - 1)], [True] * (drafts + 1)))
    return total


@pytest.mark.parametrize("each", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.6, 0.95, 1.0])
def test_the_number_of_masks_is_the_one_that_pays(chance, each):
    pace = DraftPace()
    seconds_of(16, chance, each, pace, answers=2)  # it learns
    found = seconds_of(16, chance, each, pace)
    plain = seconds_of(0, chance, each)
    best = min(seconds_of(size, chance, each) for size in (0, 2, 4, 8, 16))
    assert found <= 1.03 * plain
    assert found <= 1.25 * best


def test_a_model_that_is_new_loses_little(monkeypatch):
    found, plain = seconds_of(16, 0.0, 0.03, DraftPace(), answers=1), seconds_of(0, 0.0, 0.03, answers=1)
    assert found <= 1.1 * plain


def test_it_drafts_again_when_drafts_become_right():
    pace = DraftPace()
    seconds_of(16, 0.0, 0.02, pace)
    found = seconds_of(16, 0.97, 0.02, pace, answers=6, longest=400)
    assert found < 0.5 * seconds_of(0, 0.97, 0.02, answers=6, longest=400)


def test_a_forward_of_one_token_that_costs_less_than_a_line_says_is_not_given_up_for_drafts():
    """Of one token a forward multiplies vectors, of several matrices: the cost jumps there."""
    pace = DraftPace()
    for _ in range(5):
        pace.note_cost(1, 1.0)
        for tokens in range(2, 20):
            pace.note_cost(tokens, 1.4 + 0.01 * tokens)
    assert pace.choose(16, Luck(0.3, 1.0)) == 0
    assert pace.choose(16, Luck(0.95, 1.0)) == 16
