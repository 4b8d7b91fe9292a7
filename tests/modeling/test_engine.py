"""The engine: whatever comes and goes beside it, a request gets what it gets alone, and its slot is free after it."""

import random

import pytest
import torch
from decoding_requests import LONG, STATIC, alone, ask, build_requests, questions
from helpers import QUESTION, lively, prompts

from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import QueueFullError


@pytest.fixture(scope="module")
def some_requests(processor, pictures):
    return build_requests(processor, pictures, 24)


def assert_empty(engine):
    """No request is left, and no slot holds anything."""
    assert not engine.busy
    assert not engine.running
    assert not engine.waiting
    engine.check_integrity()


@pytest.mark.parametrize("fused_commit", [True, False])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_any_schedule_gives_each_request_what_it_gets_alone(translated_dir, some_requests, block_origin, fused_commit):
    """Random arrivals and aborts, batch sizes and prefill limits; prompts, images and settings of all kinds."""
    model = lively(translated_dir, block_origin=block_origin)
    expected = [alone(model, request) for request in some_requests]
    assert len({tuple(answer) for answer, _ in expected}) > 18
    reasons = set()
    for seed in range(4):
        rng = random.Random(seed)
        engine = Engine(
            model,
            max_batch_size=rng.choice([1, 3, 5]),
            max_length=128,
            prefill_tokens=rng.choice([16, 200]),
            fused_commit=fused_commit,
        )
        order = rng.sample(range(len(some_requests)), 16)
        live, rows = {}, 0
        while order or engine.busy:
            for _ in range(min(rng.choice([0, 0, 1, 2, 4]), len(order))):
                index = order.pop()
                live[index] = ask(engine, some_requests[index])
            if rng.random() < 0.1 and live:
                engine.abort(live[rng.choice([*live])])
            engine.step()
            rows = max(rows, len(engine.running))
        assert rows <= engine.max_batch_size
        for index, request in live.items():
            answer, forwards = expected[index]
            reasons.add(request.finish_reason)
            if request.finish_reason == "abort":
                assert request.tokens == answer[: len(request.tokens)]
                assert len(request.tokens) < len(answer)
            else:
                assert request.tokens == answer
                assert request.forwards == forwards or not fused_commit
        assert_empty(engine)
    assert reasons == {"abort", "eos", "length"}


def test_prompts_that_come_together_leave_apart(translated_dir, processor, pictures):
    """A batch whose images are in one piece, with a prompt that ends in an image: its rows end when they end."""
    model = lively(translated_dir, block_origin="absolute", block_size=16)
    batch = prompts(processor, *questions(pictures))
    engine = Engine(model, max_batch_size=8)
    requests = engine.add_batch(**batch, max_new_tokens=20, denoising_steps=2)
    late = engine.add_request(**prompts(processor, ("hi",)), max_new_tokens=3)
    engine.step()
    engine.abort(requests[2])
    while engine.busy:
        engine.step()
    assert late.tokens == model.generate(**prompts(processor, ("hi",)), max_new_tokens=3)[0, -3:].tolist()
    for question, request in zip(questions(pictures), requests, strict=True):
        expected, _ = alone(model, (prompts(processor, question), {"max_new_tokens": 20, "denoising_steps": 2}, 0))
        assert request.tokens == ([] if request is requests[2] else expected)
    assert_empty(engine)


def test_aborts_free_slots_wherever_a_request_is(translated_dir, some_requests):
    model = lively(translated_dir)
    engine = Engine(model, max_batch_size=2, max_length=128)
    requests = [ask(engine, request) for request in some_requests[:5]]
    engine.abort(requests[3])  # before anything ran
    engine.step()
    assert engine.running == requests[:2]
    assert engine.waiting == [requests[2], requests[4]]
    engine.abort(requests[0])  # in the middle of a block
    engine.abort(requests[4])  # while it waits
    engine.abort(requests[0])  # twice
    assert engine.running == [requests[1]]
    while engine.busy:
        engine.step()
    assert [request.finish_reason == "abort" for request in requests] == [True, False, False, True, True]
    assert requests[2].tokens == alone(model, some_requests[2])[0]
    assert_empty(engine)


def test_a_row_that_is_not_a_number_spoils_no_other(translated_dir, processor, pictures):
    model = lively(translated_dir)
    engine = Engine(model, max_batch_size=3, max_length=128)
    broken = prompts(processor, (QUESTION, pictures[0]))
    broken["pixel_values"] = torch.full_like(broken["pixel_values"], torch.nan)
    good, following = prompts(processor, (LONG,)), prompts(processor, ("hi",))
    spoilt = [engine.add_request(**broken, max_new_tokens=4, temperature=temperature) for temperature in (0.0, 1.0)]
    beside = engine.add_request(**good, max_new_tokens=12)
    after = engine.add_request(**following, max_new_tokens=12)  # takes the slot of the first
    while engine.busy:
        engine.step()
    assert [(request.finish_reason, request.tokens) for request in spoilt] == [("not_a_number", [])] * 2
    assert_empty(engine)
    for inputs, request in ((good, beside), (following, after)):
        assert request.tokens == alone(model, (inputs, {"max_new_tokens": 12}, 0))[0]
    with pytest.raises(ValueError, match=r"prompts \[0\] are not numbers; load it in float32"):
        model.generate(**broken)


@pytest.mark.parametrize("fused_commit", [True, False])
def test_a_prompt_that_the_model_cannot_read_spoils_no_other(translated_dir, processor, pictures, fused_commit):
    """Its pictures are not those of its placeholders; it is read together with one that is as it should be."""
    model = lively(translated_dir, position_mode="sequential")  # a native position would be refused when it arrives
    broken, other = (prompts(processor, (QUESTION, picture)) for picture in pictures[:2])
    broken |= {name: other[name] for name in ("pixel_values", "image_grid_thw")}
    engine = Engine(model, max_batch_size=4, max_length=128, fused_commit=fused_commit)
    settings = {"max_new_tokens": 12, "denoising_steps": 2, "eos_token_id": None}
    runs = engine.add_request(**prompts(processor, (LONG,)), **settings)
    engine.step()
    spoilt = engine.add_request(**broken, **settings)
    good = engine.add_request(**other, **settings)
    assert engine.step() == [runs, spoilt]  # two steps a block
    assert (spoilt.finish_reason, spoilt.tokens) == ("error", [])
    assert engine.running == [runs, good]
    while engine.busy:
        engine.step()
    for inputs, request in ((prompts(processor, (LONG,)), runs), (other, good)):
        assert request.tokens == alone(model, (inputs, settings, 0))[0]
    assert_empty(engine)
    with pytest.raises(ValueError, match="features and image tokens do not match"):
        next(engine.stream(spoilt))
    with pytest.raises(ValueError, match="features and image tokens do not match"):
        model.generate(**broken)


def test_a_stream_yields_each_token_once_and_in_order(translated_dir, some_requests):
    model = lively(translated_dir)
    engine = Engine(model, max_batch_size=4, max_length=128)
    inputs, settings, seed = some_requests[3]
    settings = {**settings, "max_new_tokens": 14, "denoising_steps": 3, "remasking": STATIC, "eos_token_id": None}
    settings["sub_block_size"] = None
    others = [ask(engine, request) for request in some_requests[:2]]
    request = ask(engine, (inputs, settings, seed))
    chunks = [*engine.stream(request, drafts=True)]
    answer, _ = alone(model, (inputs, settings, seed))
    whole = [chunk.tokens for chunk in chunks if not chunk.draft]
    assert [token for tokens in whole for token in tokens] == answer == request.tokens
    assert [len(tokens) for tokens in whole] == [4, 4, 4, 2]
    mask = model.config.mask_token_id
    assert [chunk.draft for chunk in chunks] == [True, True, False] * 4
    for first, second, final in zip(chunks[::3], chunks[1::3], chunks[2::3], strict=True):
        assert first.tokens.count(mask) > second.tokens.count(mask)
        for draft in (first, second):
            kept = [(token, last) for token, last in zip(draft.tokens, final.tokens, strict=True) if token != mask]
            assert all(token == last for token, last in kept)
    for other, source in zip(others, some_requests[:2], strict=True):  # they went on meanwhile
        expected, _ = alone(model, source)
        assert [token for chunk in engine.stream(other) for token in chunk.tokens] == other.tokens == expected
    assert_empty(engine)


def test_a_stream_that_is_closed_aborts_its_request(translated_dir, some_requests):
    model = lively(translated_dir)
    engine = Engine(model, max_length=128)
    inputs, settings, seed = some_requests[1]
    request = ask(engine, (inputs, {**settings, "max_new_tokens": 14, "eos_token_id": None}, seed))
    stream = engine.stream(request)
    first = next(stream)
    stream.close()
    assert request.finish_reason == "abort"
    assert request.tokens == first.tokens
    assert_empty(engine)
    assert [chunk.tokens for chunk in engine.stream(request)] == [first.tokens]
    other = Engine(model, max_length=128)
    foreign = ask(other, some_requests[0])
    with pytest.raises(ValueError, match="another engine"):
        next(engine.stream(foreign))
    assert not foreign.finished


@pytest.mark.parametrize(
    ("engine_settings", "settings", "said"),
    [
        ({"max_length": 64}, {"max_new_tokens": 60}, ["up to 60", "need", "blocks of 4", "64", "max_length"]),
        ({"max_batch_size": 1}, {}, ["2 prompts", "max_batch_size=1"]),
        ({}, {"stop_strings": "a"}, ["tokenizer"]),
        ({}, {"top_k": -1}, ["top_k", "-1"]),
        ({}, {"num_beams": 2}, ["num_beams"]),
    ],
)
def test_what_cannot_be_answered_is_refused_when_it_arrives(translated_dir, processor, engine_settings, settings, said):
    engine = Engine(lively(translated_dir), **engine_settings)
    with pytest.raises(ValueError) as error:
        engine.add_batch(**prompts(processor, ("hi",), (LONG,)), **settings)
    for part in said:
        assert part in str(error.value)
    assert not engine.busy


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_a_request_that_just_fits_is_taken(translated_dir, processor, block_origin):
    model, inputs = lively(translated_dir, block_origin=block_origin), prompts(processor, ("hi",))
    length = inputs["input_ids"].shape[1]
    needed = length + 8 if block_origin == "response" else -(-(length + 7) // 4) * 4
    engine = Engine(model, max_batch_size=2, max_length=needed)
    with pytest.raises(ValueError, match=f"need {needed + 4} tokens"):
        engine.add_request(**inputs, max_new_tokens=needed - length + 1)
    requests = [engine.add_request(**inputs, max_new_tokens=7, eos_token_id=None) for _ in range(2)]
    engine.step()
    requests.append(engine.add_request(**inputs, max_new_tokens=7, eos_token_id=None))
    while engine.busy:
        engine.step()
    assert {len(request.tokens) for request in requests} == {7}
    assert engine.cache.capacity <= needed + 8


def test_requests_wait_up_to_a_number(translated_dir, processor):
    engine, inputs = Engine(lively(translated_dir), max_waiting=2), prompts(processor, ("hi",))
    requests = [engine.add_request(**inputs) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait"):
        engine.add_request(**inputs)
    engine.abort(requests[0])
    engine.add_request(**inputs)
    with pytest.raises(ValueError, match=r"\[1, P\], got \[2, "):
        engine.add_request(**prompts(processor, ("hi",), (LONG,)))


def test_an_engine_needs_room(translated_dir):
    for name in ("max_batch_size", "max_length", "max_waiting", "prefill_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Engine(lively(translated_dir), **{name: 0})


def test_time_is_up(translated_dir, processor):
    """A request ends with the blocks that it has: while it runs, while it waits, and with no block at all."""
    model, now = lively(translated_dir), [0.0]
    engine = Engine(model, max_batch_size=1, clock=lambda: now[0])
    settings = {"max_new_tokens": 40, "denoising_steps": 2, "eos_token_id": None}
    inputs = prompts(processor, (LONG,))
    request = engine.add_request(**inputs, **settings, max_time=5)
    waits = engine.add_request(**inputs, **settings, max_time=2)
    assert engine.draft(request) == []  # it has no row yet
    changed = []
    for _ in range(5):  # two blocks and a half
        changed += engine.step()
        now[0] += 0.9
    assert changed == [request, waits, request]
    assert (waits.finish_reason, waits.tokens, waits.forwards) == ("time", [], 0)
    assert request.finish_reason is None
    now[0] = 5.0
    assert engine.step() == [request]
    assert engine.step() == []
    assert request.finish_reason == "time"
    assert request.tokens == alone(model, (inputs, settings, 0))[0][:8]
    assert_empty(engine)
    output = model.generate(**inputs, **settings, max_time=0, return_dict_in_generate=True)
    assert torch.equal(output.sequences, inputs["input_ids"])
    assert output.tokens_per_forward.tolist() == [0]
