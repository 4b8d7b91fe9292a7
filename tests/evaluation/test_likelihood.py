"""Likelihoods of continuations against token-by-token chains and sums over all masks."""

import itertools
import math

import pytest
import torch
from helpers import load_model, prompts
from tiny_families import save_base

from diffusionvl.checkpoints.loading import load_model as load_checkpoint
from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.evaluation import likelihood
from diffusionvl.evaluation.likelihood import likelihood_bound, log_likelihood
from diffusionvl.modeling.block_masks import CLEAN
from diffusionvl.modeling.families import is_token_type


@pytest.fixture(scope="module")
def inputs(processor, pictures):
    return prompts(processor, ("what shape is in the image?", pictures[1]))


@torch.no_grad()
def clean_logits(model, inputs, tokens, blocks):
    """Logits of an uncached row whose last tokens are one noisy copy of the last block."""
    ids = torch.tensor([tokens])
    first = blocks.index(blocks[-1])
    row = torch.cat([ids[:, :first], ids[:, first:]], dim=1)
    media = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    streams = torch.tensor([[CLEAN] * first + [1] * (len(tokens) - first)])
    positions = model.position_ids(row, torch.ones_like(row), media)
    output = model(input_ids=row, block_ids=torch.tensor([blocks]), stream_ids=streams, position_ids=positions, **media)
    return output.logits[0, first:].log_softmax(-1)


def test_blocks_of_one_token_make_the_bound_exact(translated_dir, inputs):
    model = load_model(translated_dir, block_size=1)
    prompt, continuation = inputs["input_ids"][0].tolist(), [40, 41, 42]
    expected = 0.0
    for end in range(len(continuation)):
        tokens = [*prompt, *continuation[:end], model.config.mask_token_id]
        clean = torch.tensor([tokens[:-1]])
        blocks = model.block_ids(clean, torch.ones_like(clean))[0].tolist()
        expected += float(clean_logits(model, inputs, tokens, [*blocks, blocks[-1] + 1])[0, continuation[end]])
    for samples in (1, 3):
        bound = likelihood_bound(model, inputs, torch.tensor(continuation), samples, seed=0)
        assert bound == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@pytest.mark.parametrize("origin", ["response", "absolute"])
def test_bound_is_the_mean_over_all_masks_of_a_block(origin, clean_attention, translated_dir, inputs):
    model = load_model(translated_dir, block_size=4, block_origin=origin, clean_attention=clean_attention)
    prompt, continuation, mask = inputs["input_ids"][0].tolist(), [40, 41], model.config.mask_token_id
    clean = torch.tensor([[*prompt, *continuation]])
    blocks = model.block_ids(clean, torch.ones_like(clean))[0].tolist()
    assert blocks[-1] == blocks[-2]  # one block holds both
    fill = 4 - blocks.count(blocks[-1])
    first = blocks.index(blocks[-1])
    place = len(prompt) - first
    if clean_attention == "causal":  # the mask numbers clean tokens one by one, and a block by its first token
        blocks = [*range(first), *[first] * (len(blocks) - first)]
    expected = 0.0
    for level in (1, 2):
        subsets = list(itertools.combinations(range(2), level))
        for subset in subsets:
            seen = [mask if index in subset else token for index, token in enumerate(continuation)]
            tokens = [*prompt, *seen, *[mask] * fill]
            logits = clean_logits(model, inputs, tokens, [*blocks, *[blocks[-1]] * fill])
            found = sum(float(logits[place + index, continuation[index]]) for index in subset)
            expected += found / level / len(subsets)
    bound = likelihood_bound(model, inputs, torch.tensor(continuation), samples=256, seed=0)
    assert bound == pytest.approx(expected, rel=5e-3)
    assert bound == likelihood_bound(model, inputs, torch.tensor(continuation), samples=256, seed=0)
    assert bound != likelihood_bound(model, inputs, torch.tensor(continuation), samples=256, seed=1)


def test_copies_in_one_forward_are_copies_alone(translated_dir, inputs, monkeypatch):
    model = load_model(translated_dir, block_size=8)
    continuation = torch.arange(40, 51)  # two blocks, the second one unfinished
    together = likelihood_bound(model, inputs, continuation, samples=4, seed=0)
    monkeypatch.setattr(likelihood, "NOISY_TOKENS", 1)
    assert likelihood_bound(model, inputs, continuation, samples=4, seed=0) == pytest.approx(together, rel=1e-5)


@pytest.fixture(scope="module")
def gemma_dir(tmp_path_factory):
    """A base whose images are blocks of their own: their tokens see one another."""
    folder = str(tmp_path_factory.mktemp("gemma"))
    save_base("Gemma 3", folder)
    return folder


@pytest.mark.parametrize("family", ["base_dir", "gemma_dir"])
def test_ar_likelihood_is_the_chain_of_tokens(family, request, pictures):
    folder = request.getfixturevalue(family)
    model = load_checkpoint(folder).eval()
    inputs = prompts(load_processor(folder), ("what shape is in the image?", pictures[1]))
    greedy = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    for continuation, best in ((greedy, True), (torch.tensor([40, 41, 42]), False)):
        found, is_greedy = log_likelihood(model, inputs, continuation)
        expected = 0.0
        for end in range(len(continuation)):
            row = {**inputs, "input_ids": torch.cat([inputs["input_ids"], continuation[None, :end]], dim=1)}
            row["attention_mask"] = torch.ones_like(row["input_ids"])
            types = {name: value for name, value in inputs.items() if is_token_type(name)}
            row |= {name: torch.nn.functional.pad(value, (0, end)) for name, value in types.items()}
            with torch.no_grad():
                expected += float(model(**row).logits[0, -1].log_softmax(-1)[continuation[end]])
        assert found == pytest.approx(expected, rel=1e-5)
        assert math.isfinite(found)
        assert is_greedy == best
