"""What users of transformers expect of `generate`: its names, its defaults, its hooks."""

import pytest
import torch
from helpers import QUESTION, lively, prompts
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList, SuppressTokensLogitsProcessor

from diffusionvl import DiffusionVLGenerationConfig
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.families import position_limit

DYNAMIC = {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.4}


@pytest.fixture
def model(translated_dir):
    return lively(translated_dir)


@pytest.fixture
def inputs(processor, pictures):
    return prompts(processor, (QUESTION, pictures[0]), ("hi",))


def answer(model, inputs, **settings):
    """The answers of prompts, seeded, of 12 tokens unless the settings say otherwise."""
    torch.manual_seed(0)
    settings = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, **settings}
    settings = {name: value for name, value in settings.items() if value != "left out"}
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].tolist()


def test_do_sample_is_temperature_0_or_1(model, inputs):
    greedy, drawn, hot = (answer(model, inputs, temperature=temperature) for temperature in (0.0, 1.0, 1.5))
    assert greedy != drawn != hot
    assert answer(model, inputs, do_sample=False) == answer(model, inputs, do_sample=False, temperature=1.5) == greedy
    assert answer(model, inputs, do_sample=True) == drawn
    assert answer(model, inputs, do_sample=True, temperature=1.5) == hot
    model.generation_config.do_sample = True
    assert answer(model, inputs) == drawn
    assert answer(model, inputs, temperature=1.5) == hot
    assert answer(model, inputs, temperature=0.0) == answer(model, inputs, do_sample=False) == greedy


def test_max_length_counts_the_padded_prompt(model, inputs):
    width = inputs["input_ids"].shape[1]
    expected = answer(model, inputs, max_new_tokens=7)
    assert answer(model, inputs, max_new_tokens="left out", max_length=width + 7) == expected
    assert answer(model, inputs, max_new_tokens=7, max_length=width + 3) == expected
    model.generation_config.max_length = width + 7
    assert answer(model, inputs, max_new_tokens="left out") == expected
    model.generation_config.max_new_tokens = 5
    assert answer(model, inputs, max_new_tokens="left out") == answer(model, inputs, max_new_tokens=5)


def test_several_answers_to_a_prompt_stand_together(model, inputs):
    found = answer(model, inputs, num_return_sequences=3, do_sample=True, temperature=1.5)
    assert len(found) == 6
    assert len({tuple(row) for row in found}) == 6
    sequences = model.generate(**inputs, num_return_sequences=2, do_sample=True, max_new_tokens=4)
    assert torch.equal(sequences[:, :-4], inputs["input_ids"].repeat_interleave(2, dim=0))


def test_no_end_of_sequence_comes_before_min_new_tokens(model, inputs):
    free = answer(model, inputs)
    ends = [free[0][1], free[1][6]]
    assert (
        min(map(len, (row[: row.index(0)] if 0 in row else row for row in answer(model, inputs, eos_token_id=ends))))
        < 9
    )
    for policy in ({}, DYNAMIC):
        for row in answer(model, inputs, eos_token_id=ends, min_new_tokens=9, **policy):
            assert not {*row[:9]} & {*ends}


def test_processors_see_the_logits_of_the_places_being_written(model, inputs):
    free, shapes = answer(model, inputs), set()
    dull = SuppressTokensLogitsProcessor([*{token for row in free for token in row}])

    def note(ids, logits):
        shapes.add((ids.shape[0] == logits.shape[0], ids.shape[1], logits.shape[0]))
        return logits

    found = answer(model, inputs, logits_processor=LogitsProcessorList([note, dull]))
    assert not {token for row in found for token in row} & {token for row in free for token in row}
    lengths = inputs["attention_mask"].sum(-1).tolist()
    assert shapes == {
        (True, own + 4 * block, places) for own in lengths for block in range(3) for places in range(1, 5)
    }
    assert answer(model, inputs, logits_processor=[lambda ids, logits: logits]) == free


def test_a_repetition_penalty_is_applied(model, inputs):
    free, other = answer(model, inputs), answer(model, inputs, repetition_penalty=1.8)
    assert free == answer(model, inputs, repetition_penalty=1.0) != other
    assert sum(len({*row}) for row in other) >= sum(len({*row}) for row in free)


def test_criteria_are_asked_after_each_block(model, inputs):
    lengths, prompt = [], inputs["attention_mask"].sum(-1).tolist()
    assert prompt[0] > prompt[1] + 8

    def enough(ids, scores, **kwargs):
        lengths.append(ids.shape[1])
        return torch.tensor([ids.shape[1] >= prompt[1] + 8])

    free = answer(model, inputs)
    found = answer(model, inputs, stopping_criteria=StoppingCriteriaList([enough]))
    assert found == [[*free[0][:4], 0, 0, 0, 0], free[1][:8]]
    assert sorted(lengths) == sorted([prompt[0] + 4, prompt[1] + 4, prompt[1] + 8])


def test_a_stock_config_counts_with_what_differs_from_its_defaults(model, inputs):
    stock = GenerationConfig(do_sample=True, temperature=1.5, top_k=20, max_new_tokens=9, pad_token_id=0)
    settings = {"temperature": 1.5, "top_k": 20, "max_new_tokens": 9}
    assert answer(model, inputs, generation_config=stock, max_new_tokens="left out") == answer(
        model, inputs, **settings
    )
    own = DiffusionVLGenerationConfig(**settings)
    assert answer(model, inputs, generation_config=own, max_new_tokens=3) == answer(
        model, inputs, **{**settings, "max_new_tokens": 3}
    )


@pytest.mark.parametrize("padding", [1, 40])
def test_a_missing_mask_is_inferred_from_the_padding(model, processor, padding):
    own = prompts(processor, (QUESTION,))["input_ids"]
    pad = processor.tokenizer.pad_token_id
    assert pad not in own
    padded = {"input_ids": torch.cat([torch.full((1, padding), pad), own], dim=1)}
    alone = {"input_ids": own}
    expected = answer(model, alone, pad_token_id=pad)
    assert answer(model, padded, pad_token_id=pad) == expected
    # As in transformers, not where the padding may end an answer.
    assert answer(model, padded, pad_token_id=pad, eos_token_id=[pad]) != answer(
        model, alone, pad_token_id=pad, eos_token_id=[pad]
    )


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"temperature": 1e-3}, {"temperature": 1e-38}, {"top_p": 1e-9}])
@pytest.mark.parametrize("policy", [{}, DYNAMIC, {"remasking": "entropy_bounded", "entropy_bound": 2.0}])
def test_sampling_that_is_nearly_greedy_gives_the_greedy_answer_in_as_many_forwards(model, inputs, settings, policy):
    settings = {"temperature": 1.0, **settings}
    output = [
        model.generate(**inputs, max_new_tokens=16, eos_token_id=None, return_dict_in_generate=True, **policy, **some)
        for some in ({}, settings)
    ]
    assert torch.equal(output[0].sequences, output[1].sequences)
    assert torch.equal(output[0].forwards, output[1].forwards)


def test_a_falling_temperature_approaches_the_greedy_answer(model, inputs):
    greedy = torch.tensor(answer(model, inputs, **DYNAMIC))
    drawn = [torch.tensor(answer(model, inputs, temperature=t, **DYNAMIC)) for t in (2.0, 0.5, 0.001)]
    far = [int((one != greedy).sum()) for one in drawn]
    assert far[0] > far[-1] == 0


def test_a_row_ends_with_the_positions_of_the_model(model, processor):
    """A longer prompt is refused; a longer answer ends there."""
    inputs = prompts(processor, ("hi",))
    length = inputs["input_ids"].shape[1]
    free = answer(model, inputs, max_new_tokens=12)
    model.base.config.get_text_config().max_position_embeddings = length + 6
    assert position_limit(model.base.config) == length + 6
    found = answer(model, inputs, max_new_tokens=10**9)
    assert (len(found[0]), found[0][:4]) == (6, free[0][:4])
    model.base.config.get_text_config().max_position_embeddings = length
    with pytest.raises(UserError, match=f"a prompt takes {length} positions, and the model has {length}"):
        answer(model, inputs)


def test_a_long_answer_costs_memory_as_it_is_used(model, processor):
    """2 ** 60 tokens would fit in no list."""
    model.base.config.get_text_config().max_position_embeddings = 2**61
    inputs = prompts(processor, ("hi",))
    found = answer(model, inputs, max_new_tokens=2**60, stopping_criteria=[lambda ids, scores: True])
    assert len(found[0]) == 4
