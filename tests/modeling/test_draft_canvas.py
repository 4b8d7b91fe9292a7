"""A row of pending tokens and masks, step by step: what is written, what is drafted, what the cache keeps."""

import random

import pytest
import torch

from diffusionvl.modeling.canvas import Prompt
from diffusionvl.modeling.draft_canvas import DraftCanvas

MASK = 99


def build(length, draft_size, longest=100):
    index = torch.arange(length)
    return DraftCanvas(Prompt.build(index, index[None], index, True, True), MASK, draft_size, longest)


def test_the_drawing_of_the_docstring():
    canvas = build(2, draft_size=3)
    assert (canvas.ids, canvas.wanted, canvas.targets) == ([0, 1, MASK, MASK, MASK], [1, 3, 4], [2, 3, 4])
    assert canvas.run(canvas.span).limits == [1, 2, 5, 5, 5]
    canvas.see()
    assert canvas.write([50, 51, 52], [True] * 3) == [50]  # c, and drafts d and e
    assert (canvas.kept, canvas.ids, canvas.written) == (2, [0, 1, 50, 51, 52, MASK, MASK, MASK], [51, 52])
    assert canvas.run(canvas.span).limits == [3, 4, 5, 8, 8, 8]
    assert (canvas.wanted, canvas.targets, canvas.known) == ([2, 3, 4, 6, 7], [3, 4, 5, 6, 7], [3, 4, 5, 5, 5])
    canvas.see()
    assert canvas.write([51, 60, 61, 62, 63], [True] * 5) == [51, 60]  # e was wrong, and so is what follows it
    assert (canvas.kept, canvas.ids, canvas.written) == (4, [0, 1, 50, 51, 60, MASK, MASK, MASK], [])
    assert canvas.lengths == [1, 2]


def test_a_close_choice_is_made_again_alone():
    index = torch.arange(2)
    canvas = DraftCanvas(Prompt.build(index, index[None], index, True, True), MASK, 3, 100, careful=True)
    assert canvas.span == range(2)  # the prompt is read as an autoregressive row reads it
    canvas.see()
    assert canvas.write([50], [False]) == [50]  # nothing was drafted: this is the choice of its own
    canvas.see()
    assert canvas.write([51, 52, 53], [True] * 3) == [51]
    canvas.see()
    assert canvas.write([52, 60, 61, 62, 63], [True, False, True, True, True]) == [52]  # the second is close
    assert (canvas.ids, canvas.kept, canvas.span, canvas.wanted) == ([0, 1, 50, 51, 52], 4, range(4, 5), [4])
    canvas.see()
    assert canvas.write([53], [False]) == [53]
    assert canvas.ids[canvas.window :] == [MASK] * 3


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("longest", [1, 2, 7, 40])
@pytest.mark.parametrize("draft_size", [0, 1, 2, 5])
def test_what_is_written_is_what_the_clean_stream_chooses(draft_size, longest, cached):
    """The clean stream chooses a function of all that comes before; drafts are right now and then."""
    rng = random.Random(draft_size)

    def choose(prefix):
        return random.Random(str(prefix)).randrange(50)

    canvas, answer = build(3, draft_size, longest), []
    expected = [0, 1, 2]
    while len(expected) < 3 + longest:
        expected.append(choose(expected))
    while len(answer) < longest:
        clean = [canvas.ids[: column + 1] for column in canvas.wanted if column < canvas.window]
        assert all(MASK not in prefix for prefix in clean)
        assert canvas.end <= 3 + longest
        if cached:
            canvas.see()
        truth = [expected[target] if rng.random() < 0.7 else 77 for target in canvas.targets[len(clean) :]]
        answer += canvas.write([choose(prefix) for prefix in clean] + truth, [True] * len(canvas.wanted))
        assert canvas.kept == (3 + len(answer) - 1 if cached else 0)
        assert canvas.ids[: canvas.sure] == expected[: canvas.sure]
        assert canvas.shown.tokens[: canvas.lengths[-1]] == answer[-canvas.lengths[-1] :]
    assert answer == expected[3:]
    assert sum(canvas.lengths) == longest
    assert len(canvas.lengths) == longest if draft_size < 2 else max(canvas.lengths) <= draft_size
