"""A checkpoint decodes in blocks smaller than its own as a checkpoint with blocks of that size would."""

import pytest
import torch
from decoding_requests import LONG
from helpers import QUESTION, lively, prompts

from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import UserError

NEW = {"max_new_tokens": 13, "eos_token_id": None, "pad_token_id": 0}
WAYS = {
    "static": {"remasking": "low_confidence_static"},
    "two steps": {"remasking": "low_confidence_static", "denoising_steps": 2},
    "dynamic": {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.3},
    "sub-blocks": {"remasking": "low_confidence_dynamic", "sub_block_size": 2},
    "speculative": {"decoding": "speculative"},
}


@pytest.fixture
def rows(pictures):
    return [("hi",), (QUESTION, pictures[0]), (LONG, pictures[1], pictures[2])]


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_a_smaller_block_is_that_of_a_checkpoint_with_it(
    translated_dir, processor, rows, size, way, clean_attention, block_origin
):
    if (way == "speculative" and clean_attention == "block") or (way == "sub-blocks" and size == 3):
        pytest.skip("not a setting of these")
    changes = {"clean_attention": clean_attention, "block_origin": block_origin}
    large, small = (lively(translated_dir, block_size=own, **changes).double() for own in (8, size))
    batch, settings = prompts(processor, *rows), {**NEW, **WAYS[way]}
    found, expected = (
        model.generate(**batch, **settings, **own, return_dict_in_generate=True)
        for model, own in ((large, {"block_size": size}), (small, {}))
    )
    assert torch.equal(found.sequences, expected.sequences)
    if way != "speculative":  # where the pace of drafts goes by the clock
        assert torch.equal(found.forwards, expected.forwards)


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
def test_rows_of_one_batch_may_have_blocks_of_their_own_size_and_share_prefixes(
    translated_dir, processor, rows, clean_attention
):
    model = lively(translated_dir, block_size=8, clean_attention=clean_attention, block_origin="absolute").double()
    inputs = [prompts(processor, row) for row in rows[:2]]
    engine = Engine(model, 2, 256, prefix_cache_tokens=1000)
    for sizes in ((4, 8), (8, 4), (4, 8)):  # the second and third times, prefixes of other sizes are kept
        requests = [engine.add_request(**own, **NEW, block_size=size) for own, size in zip(inputs, sizes, strict=True)]
        while engine.busy:
            engine.step()
        for own, size, request in zip(inputs, sizes, requests, strict=True):
            alone = model.generate(**own, **NEW, block_size=size)[0, own["input_ids"].shape[1] :]
            assert request.tokens == alone.tolist()


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"block_size": 9}, "block_size=9 exceeds the checkpoint's; give 1 to 8"),
        ({"block_size": 0}, "block_size must be an integer of at least 1"),
        ({"block_size": 4, "denoising_steps": 5}, "denoising_steps=5 exceeds the block size; give 1 to 4"),
        ({"block_size": 4, "sub_block_size": 8}, "sub_block_size=8 does not divide the block size 4"),
        ({"block_size": 4, "decoding": "speculative", "draft_size": 5}, "draft_size=5 exceeds the block size"),
    ],
)
def test_sizes_that_do_not_fit(translated_dir, processor, settings, part):
    model = lively(translated_dir, block_size=8, clean_attention="causal")
    with pytest.raises(UserError, match=part):
        model.generate(**prompts(processor, ("hi",)), **settings)
