"""Forwards over the rows: each fast path gives the numbers of the plain one."""

import copy

import pytest
import torch
from decoding_requests import LONG, alone, ask, build_requests
from helpers import lively, prompts
from tiny_families import TEXT_TEMPLATE, build_tokenizer, text_config
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.modeling import batch
from diffusionvl.modeling.block_masks import TokenTags, dense_mask
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.families import placeholder_ids


@pytest.fixture(scope="module")
def some_requests(processor, pictures):
    """Exact ones: sub-blocks would make for a third shape."""
    some = build_requests(processor, pictures, 12)
    return [(inputs, {**settings, "sub_block_size": None}, seed) for inputs, settings, seed in some]


@pytest.mark.parametrize("fast", ["no mask", "no mask and one length"])
def test_a_mask_is_left_out_where_nothing_is_hidden(translated_dir, processor, monkeypatch, fast):
    """One row, and rows of equal length: the steps after a block's first run without a mask, to the same numbers."""
    model = lively(translated_dir)
    question = prompts(processor, (LONG,)) if fast == "no mask" else prompts(processor, (LONG,), (LONG,))
    settings = {"max_new_tokens": 12, "denoising_steps": 3, "eos_token_id": None, "output_history": True}
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(*args, attn_mask=None, is_causal=False, **kwargs):
        assert not is_causal
        masks.append(attn_mask is not None)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    output = model.generate(**question, **settings, return_dict_in_generate=True)
    layers = len(model.base.get_decoder().layers)
    assert masks == ([True] * layers + [False] * 2 * layers) * 3  # a block's first step commits, so it needs a mask

    monkeypatch.setattr(batch, "unmaskable", lambda decoder, layers: [])
    masks.clear()
    plain = model.generate(**question, **settings, return_dict_in_generate=True)
    assert all(masks)
    assert torch.equal(output.sequences, plain.sequences)
    for step, other in zip(output.history, plain.history, strict=True):
        torch.testing.assert_close(step.confidence, other.confidence, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.base.get_decoder().modules())
    assert all(layer.self_attn.is_causal for layer in model.base.get_decoder().layers)


@pytest.mark.parametrize("kind", ["llama", "stablelm", "gpt2", "xglm", "gpt_neox", "opt", "phi", "cohere"])
def test_without_a_mask_every_family_sees_what_it_sees_with_one(monkeypatch, kind):
    """Some layers do not hand `is_causal` on, some take their mask by place, some cannot do without."""
    tokenizer = build_tokenizer(TEXT_TEMPLATE)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **text_config(tokenizer)))
    ids = tokenizer(LONG, return_tensors="pt")["input_ids"]
    config = DiffusionVLConfig(base.config, block_size=8, mask_token_id=len(tokenizer) + 1)
    model = DiffusionVLForConditionalGeneration(config, base).eval()
    settings = {"max_new_tokens": 24, "output_history": True, "return_dict_in_generate": True}
    settings |= {"eos_token_id": None, "pad_token_id": 0}
    without = model.generate(ids, **settings)
    monkeypatch.setattr(batch, "unmaskable", lambda decoder, layers: [])
    with_one = model.generate(ids, **settings)
    assert torch.equal(without.sequences, with_one.sequences)
    for step, other in zip(without.history, with_one.history, strict=True):
        torch.testing.assert_close(step.confidence, other.confidence, rtol=1e-4, atol=1e-6)


def test_the_head_runs_on_masked_places_alone(translated_dir, processor):
    model, seen = lively(translated_dir), []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.shape[-2]))
    inputs = prompts(processor, ("hi",), (LONG,))
    for fused_commit, expected in ((True, [8, 6, 4, 2] * 2), (False, [0, 8, 6, 4, 2] * 2)):
        seen.clear()
        model.generate(**inputs, max_new_tokens=8, eos_token_id=None, fused_commit=fused_commit)
        assert seen == expected


@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_waits_for_the_device_once(translated_dir, processor, monkeypatch, rows):
    """Whatever the number of rows: all that a step has found comes over in one piece."""
    engine, waits = Engine(lively(translated_dir), max_batch_size=4), []
    for _ in range(rows):
        engine.add_request(**prompts(processor, (LONG,)), max_new_tokens=12, eos_token_id=None)
    engine.step()

    def noted(name, own):
        return lambda tensor, *args: waits.append(name) or own(tensor, *args)

    for name in ("tolist", "item", "cpu", "nonzero", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    engine.step()
    monkeypatch.undo()
    assert waits == ["tolist"]


def run_in_turn(engine, some):
    """Answers of requests of which one more arrives at every step."""
    requests, waiting = [], [*some]
    while waiting or engine.busy:
        if waiting:
            requests.append(ask(engine, waiting.pop(0)))
        engine.step()
    return [request.tokens for request in requests]


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
@pytest.mark.parametrize(("fused_commit", "widths"), [(True, {4, 8}), (False, {4})])
def test_static_shapes_are_few_and_give_the_same_tokens(
    translated_dir, some_requests, fused_commit, widths, block_origin
):
    model, shapes = lively(translated_dir, block_origin=block_origin), set()
    expected = [alone(model, request)[0] for request in some_requests]
    engine = Engine(model, max_batch_size=3, max_length=128, fused_commit=fused_commit, static_shapes=True)

    def note(module, args, kwargs):
        if kwargs["attention_mask"].shape[-1] == 136:  # not a prompt's, which is as long as it is
            shapes.add((kwargs["inputs_embeds"].shape[:2], kwargs["attention_mask"].shape))

    model.base.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    assert run_in_turn(engine, some_requests) == expected
    assert shapes == {((3, width), (3, 1, width, 136)) for width in widths}
    assert (engine.cache.slots, engine.cache.capacity) == (3, 136)


def test_a_decoder_that_is_compiled_is_traced_once_for_each_shape(translated_dir, some_requests):
    model, graphs = lively(translated_dir), []
    expected = [alone(model, request)[0] for request in some_requests[:8]]

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.base.get_decoder().compile(backend=backend, dynamic=False)
    engine = Engine(model, max_batch_size=2, max_length=128, static_shapes=True)
    assert run_in_turn(engine, some_requests[:4]) == expected[:4]
    traced = len(graphs)
    assert traced
    with torch.compiler.set_stance("fail_on_recompile"):
        assert run_in_turn(engine, some_requests[4:8]) == expected[4:8]
    assert len(graphs) == traced


def decode_by_sub_blocks_slowly(model, inputs, size, steps, new):
    """A dual cache by hand: in a sub-block's later steps, the window's other keys and values are cut out of a cache."""
    block, mask = model.config.block_size, model.config.mask_token_id
    row, layers = inputs["input_ids"], range(len(model.base.get_decoder().layers))
    prompt = row.shape[1]

    def run(ids, first, cache):
        span = torch.arange(first, first + ids.shape[1])
        seen = torch.ones(1, 1, ids.shape[1], cache.get_seq_length() + ids.shape[1], dtype=torch.bool)
        return model(ids, seen, span.expand(3, 1, -1), past_key_values=cache, use_cache=True).logits[0]

    cache, blocks = DynamicCache(), model.block_ids(row, torch.ones_like(row))
    tags = TokenTags(blocks, torch.zeros_like(row), torch.zeros_like(row))
    model(row, dense_mask(tags), torch.arange(prompt).expand(3, 1, -1), past_key_values=cache, use_cache=True)
    answer = []
    while len(answer) < new:
        begin = prompt + len(answer)
        ids = torch.full((1, block), mask)
        for sub_block in range(0, block, size):
            for step in range(steps):
                kept = copy.deepcopy(cache)
                if step == 0:
                    logits = run(ids, begin, kept)[sub_block : sub_block + size]
                    window = kept
                else:
                    for layer in layers:
                        for name in ("keys", "values"):
                            states = getattr(window.layers[layer], name)
                            place = begin + sub_block
                            rest = torch.cat([states[:, :, :place], states[:, :, place + size :]], dim=2)
                            setattr(kept.layers[layer], name, rest)
                    logits = run(ids[:, sub_block : sub_block + size], begin + sub_block, kept)
                logits[:, [mask, *placeholder_ids(model.base.config)]] = -torch.inf
                sure, tokens = logits.softmax(-1).max(-1)
                best = int(sure.masked_fill(ids[0, sub_block : sub_block + size] != mask, -1).argmax())
                ids[0, sub_block + best] = tokens[best]
        run(ids, begin, cache)
        answer += ids[0].tolist()
    return answer[:new]


@pytest.mark.parametrize("fused_commit", [True, False])
def test_sub_blocks_reuse_the_keys_and_values_of_the_others(translated_dir, processor, fused_commit):
    model, inputs = lively(translated_dir, block_size=8), prompts(processor, (LONG,))
    settings = {"max_new_tokens": 24, "eos_token_id": None, "fused_commit": fused_commit}
    exact = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, sub_block_size=8), exact)
    widths = []
    decoder = model.base.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    found = model.generate(**inputs, **settings, sub_block_size=4)
    handle.remove()
    first = inputs["input_ids"].shape[1]
    later = [4, 4, 4, 8, 4, 4, 4]
    fused = [[first + 8, *later], [16, *later], [16, *later]]
    apart = [[first, 8, *later], [8, 8, *later], [8, 8, *later]]
    assert widths == [width for block in (fused if fused_commit else apart) for width in block]
    with torch.no_grad():
        expected = decode_by_sub_blocks_slowly(model, inputs, 4, 4, 24)
    assert found[0, first:].tolist() == expected
    assert not torch.equal(found, exact)


def test_sub_blocks_of_a_block_that_holds_the_prompt(translated_dir, processor):
    """Nothing is in the cache but the window itself."""
    model = lively(translated_dir, block_origin="absolute", block_size=32)
    inputs = prompts(processor, ("hi",), ("why?",), (LONG,))
    settings = {"max_new_tokens": 20, "denoising_steps": 16, "sub_block_size": 8, "eos_token_id": None}
    together = model.generate(**inputs, **settings)[:, -20:]
    for answer, question in zip(together.tolist(), ("hi", "why?", LONG), strict=True):
        assert answer == alone(model, (prompts(processor, (question,)), settings, 0))[0]
