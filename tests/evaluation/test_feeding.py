"""Prompts that an engine is fed: together where one call can take them in, each answered as alone."""

import pytest
import torch
from helpers import QUESTION, lively, prompts

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.evaluation.feeding import answer_continuously
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import UserError


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


@pytest.fixture
def calls(monkeypatch):
    """The number of prompts of each call of `add_batch`, refused ones included."""
    sizes, add = [], Engine.add_batch

    def counted(self, input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        return add(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(Engine, "add_batch", counted)
    return sizes


@pytest.mark.parametrize("draws", [{}, {"temperature": 1.2}])
def test_prompts_are_taken_in_together_and_answered_as_alone(causal_dir, processor, pictures, calls, draws):
    """Four rows; a prompt that is too long is refused alone, and others wait for one that is free."""
    model = lively(causal_dir)
    asked = [(QUESTION, pictures[0]), ("hi?", pictures[1]), ("why? " * 60, pictures[2]), ("is it?", *pictures[:2])]
    inputs = [prompts(processor, one) for one in (*asked, *asked[:2], ("and?",))]
    settings = {"max_new_tokens": 10, **draws}

    def prompt(key):
        return {**inputs[key], **settings, "generator": torch.Generator().manual_seed(key)}

    found = dict(answer_continuously(Engine(model, 4, 160), range(7), prompt))
    assert "this engine's rows hold 160" in str(found[2])
    assert calls[:5] == [4, 1, 1, 1, 1]
    assert sum(calls[5:]) == 3
    for key in {*range(7)} - {2}:
        alone = model.generate(**prompt(key))[0, inputs[key]["input_ids"].shape[1] :].tolist()
        assert found[key].tokens == alone


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        ({}, [4]),
        ({"max_length": 200}, [1, 1, 1, 1]),  # it counts the padding
        ({"attention_mask": None}, [1, 1, 1, 1]),  # it says what the padding is
    ],
)
def test_what_padding_would_change_is_taken_in_alone(causal_dir, processor, calls, change, sizes):
    inputs = [{**prompts(processor, (text,)), "max_new_tokens": 4, **change} for text in ("a?", "and b?", "c?", "d?")]
    if "max_length" in change:
        inputs = [{name: value for name, value in one.items() if name != "max_new_tokens"} for one in inputs]
    found = dict(answer_continuously(Engine(lively(causal_dir), 4, 256), range(4), inputs.__getitem__))
    assert sorted(found) == [0, 1, 2, 3]
    assert calls == sizes


def test_prompts_of_one_call_are_few_enough_to_be_read_together(causal_dir, processor, calls):
    inputs = {**prompts(processor, ("why?",)), "max_new_tokens": 4}
    most = 2 * inputs["input_ids"].shape[1]
    engine = Engine(lively(causal_dir), 4, 256, prefill_tokens=most)
    assert len([*answer_continuously(engine, range(5), lambda key: inputs)]) == 5
    assert calls[:2] == [2, 2]
