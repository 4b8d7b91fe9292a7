"""`next_token_first`: the clean stream writes the first token of each block; the masks write the others, as ever."""

import pytest
import torch
from helpers import QUESTION, lively, media_of, prompts

from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.families import placeholder_ids

STATIC, DYNAMIC, BOUNDED = "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"
LONG = "is there a circle, a triangle or a square in the image, and what color does it have?"
NEW = 14


@pytest.fixture
def model(causal_dir):
    return lively(causal_dir)


@pytest.fixture
def questions(pictures):
    """Text alone, one image, several images."""
    return [(LONG,), (QUESTION, pictures[0]), (LONG, pictures[1], pictures[2])]


def generate(model, inputs, **settings):
    settings = {"max_new_tokens": NEW, "next_token_first": True, "eos_token_id": None, **settings}
    output = model.generate(**inputs, **settings, return_dict_in_generate=True)
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), output


def decode_slowly(model, inputs, remasking, threshold, steps):
    """Decodes a row without a cache: every step runs all tokens, those before the block causal, the block whole."""
    size, mask_id = model.config.block_size, model.config.mask_token_id
    forbidden = [mask_id, *placeholder_ids(model.base.config)]
    media = media_of(model, inputs)
    row = inputs["input_ids"][0].tolist()
    prompt, count = len(row), 0
    for begin in range(prompt, prompt + NEW, size):
        row += [mask_id] * size
        length = len(row)
        seen = torch.ones(length, length).tril().bool()
        seen[begin:] = True
        positions = model.position_ids(torch.tensor([row]), torch.ones(1, length), media)
        for step in range(steps):
            masked = [place for place in range(begin, length) if row[place] == mask_id]
            if not masked:
                break
            with torch.no_grad():
                logits = model(torch.tensor([row]), seen[None, None], positions, **media).logits[0]
            draws, sure = {}, {}
            for place in masked:
                chances = logits[place - 1 if (step, place) == (0, begin) else place].softmax(-1)
                ranked = chances.argsort(descending=True).tolist()
                draws[place] = next(token for token in ranked if token not in forbidden)
                sure[place] = 2.0 if (step, place) == (0, begin) else float(chances[draws[place]])
            quota = size // steps + (step < size % steps)
            kept = [place for place in masked if sure[place] > threshold] if remasking == DYNAMIC else []
            if len(kept) < quota:
                kept = sorted(masked, key=lambda place: -sure[place])[:quota]
            for place in kept:
                row[place] = draws[place]
            count += 1
    return row[prompt : prompt + NEW], count


@pytest.mark.parametrize("options", [{}, {"fused_commit": False}, {"use_cache": False}])
@pytest.mark.parametrize(("remasking", "threshold", "steps"), [(STATIC, 0, 4), (STATIC, 0, 3), (DYNAMIC, 0.2, 4)])
def test_it_is_decoding_without_a_cache(model, processor, questions, remasking, threshold, steps, options):
    settings = {"remasking": remasking, "confidence_threshold": threshold, "denoising_steps": steps, **options}
    for question in questions:
        inputs = prompts(processor, question)
        expected, count = decode_slowly(model, inputs, remasking, threshold, steps)
        found, output = generate(model, inputs, **settings, output_history=True)
        assert found == [expected]
        assert len(output.history) == count
        assert found != generate(model, inputs, **settings, next_token_first=False)[0]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
def test_the_first_token_is_that_of_autoregressive_decoding(model, processor, questions, options):
    """Also in blocks of one token, where nothing is left to the masks."""
    for question in questions:
        inputs = prompts(processor, question)
        one, _ = generate(model, inputs, decoding="autoregressive")
        assert generate(model, inputs, remasking=BOUNDED)[0][0][0] == one[0][0]
        assert generate(model, inputs, block_size=1, denoising_steps=1)[0] == one


@pytest.mark.parametrize(
    "settings", [{}, {"static_shapes": True}, {"fused_commit": False}, {"prefix_cache_tokens": 200}]
)
def test_rows_together_get_what_each_gets_alone(model, processor, questions, settings):
    wanted = {"remasking": DYNAMIC, "confidence_threshold": 0.2, "max_new_tokens": NEW, "eos_token_id": None}
    engine = Engine(model, max_batch_size=3, max_length=128, **settings)
    asked = [prompts(processor, question) for question in [*questions, *questions]]
    requests = []
    for number, inputs in enumerate(asked):
        requests.append(engine.add_request(**inputs, **wanted, next_token_first=number % 3 > 0))
        engine.step()
    while engine.busy:
        engine.step()
    engine.check_integrity()
    for number, (inputs, request) in enumerate(zip(asked, requests, strict=True)):
        (expected,), _ = generate(model, inputs, **wanted, next_token_first=number % 3 > 0)
        assert request.tokens == expected


def test_blocks_that_see_themselves_have_no_next_token(translated_dir, processor):
    with pytest.raises(ValueError, match="next_token_first needs a clean stream that is causal"):
        generate(lively(translated_dir), prompts(processor, (LONG,)))
