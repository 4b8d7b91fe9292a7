"""Where generated answers end, when their first tokens come out, and how an engine is kept busy."""

from types import SimpleNamespace

import pytest
import torch
from helpers import lively, prompts

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.evaluation.decoding import FirstTokens, answer_continuously, answer_lengths
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import UserError

END, PAD = 1, 0


@pytest.mark.parametrize("eos", [END, [END, 9]])
def test_answer_lengths(eos):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos, pad_token_id=PAD))
    new = torch.tensor([[5, 6, END, PAD], [END, PAD, PAD, PAD], [5, 6, 7, 8], [5, 6, PAD, PAD], [5, 6, 7, END]])
    assert answer_lengths(new, model).tolist() == [3, 1, 4, 2, 4]
    model.generation_config = SimpleNamespace(eos_token_id=None, pad_token_id=None)
    assert answer_lengths(new, model).tolist() == [4] * 5


def test_padding_that_is_the_end_of_sequence():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=END, pad_token_id=END))
    assert answer_lengths(torch.tensor([[5, END, END], [5, 6, END], [5, 6, 7]]), model).tolist() == [2, 3, 3]


def test_first_tokens_are_those_after_the_prompt():
    first = FirstTokens()
    first.put(torch.tensor([[1, 2]]))
    assert first.seconds is None
    first.put(torch.tensor([3]))
    seconds = first.seconds
    assert seconds > 0
    first.put(torch.tensor([4]))
    first.end()
    assert first.seconds == seconds


def test_a_long_answer_holds_no_short_one_back(translated_dir):
    """Two rows: while the first prompt is answered, the three short ones follow one another in the second row."""
    model, processor = lively(translated_dir), load_processor(translated_dir)
    lengths = [24, 4, 4, 4]
    inputs = [prompts(processor, (f"{number} {'why ' * number}",)) for number in range(4)]
    taken, ended = [], []

    def prompt(key):
        taken.append((key, len(ended)))
        return {**inputs[key], "max_new_tokens": lengths[key], "eos_token_id": []}

    answers = {}
    for key, answered in answer_continuously(Engine(model, 2, 512), range(4), prompt):
        ended.append(key)
        answers[key] = answered
    assert ended == [1, 2, 3, 0]
    assert taken == [(0, 0), (1, 0), (2, 1), (3, 2)]  # no prompt is prepared before there is a row for it
    for key, (tokens, cost) in answers.items():
        alone = model.generate(
            **inputs[key], max_new_tokens=lengths[key], eos_token_id=[], return_dict_in_generate=True
        )
        assert tokens == alone.sequences[0, inputs[key]["input_ids"].shape[1] :].tolist()
        assert (cost.answers, cost.tokens, cost.forwards) == (1, lengths[key], int(alone.forwards[0]))
        assert cost.first_seconds > 0
    assert answers[0].cost.seconds > answers[1].cost.seconds


def test_a_prompt_that_cannot_be_asked_leaves_the_others_alone(translated_dir):
    model, processor = lively(translated_dir), load_processor(translated_dir)
    inputs = prompts(processor, ("why?",))

    def prompt(key):
        if key == 0:
            raise UserError("prompt 0: no picture")
        return {**inputs, "max_new_tokens": 4, "temperature": -1.0 if key == 1 else 0.0, "eos_token_id": []}

    found = dict(answer_continuously(Engine(model, 2, 512), range(4), prompt))
    assert sorted(found) == [0, 1, 2, 3]
    assert str(found[0]) == "prompt 0: no picture"
    assert "temperature" in str(found[1])
    assert found[2].tokens == found[3].tokens
