"""Whatever raises, wherever: the request that it was raised for ends with the error, the others get their answers."""

import random
import threading
from types import FunctionType

import pytest
import torch
from decoding_requests import LONG, alone, ask, build_requests
from helpers import QUESTION, lively, prompts

from diffusionvl.modeling import (
    arrivals,
    batch,
    block_canvas,
    cache,
    canvas,
    draft_canvas,
    draft_pace,
    engine,
    prefix,
    remasking,
    request,
    sampling,
)
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import UserError

MODULES = [
    *(arrivals, batch, block_canvas, cache, canvas, draft_canvas),
    *(draft_pace, engine, prefix, remasking, request, sampling),
]
# What a step calls beyond the project: allocations, transfers, a kernel.
OUTSIDE = [
    *((torch.Tensor, name) for name in ("new_zeros", "tolist", "multinomial", "to", "split", "masked_scatter")),
    *((torch, name) for name in ("tensor", "arange", "zeros", "cat")),
    (torch.nn.functional, "scaled_dot_product_attention"),
]


def call_sites():
    """Every function and method of these modules that an engine calls after requests have been taken in."""
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                yield module, name
            elif isinstance(value, type) and value.__module__ == module.__name__ and value is not Engine:
                for method, function in vars(value).items():
                    if isinstance(function, FunctionType) and (method == "__init__" or not method.startswith("__")):
                        yield value, method
    yield from ((Engine, name) for name in ("_run", "_admit", "_sweep", "_expire"))
    yield from OUTSIDE


OFTEN = {"_forward", "_draw", "_commit", "at", "free", "update", "receive", "new_zeros", "tensor", "multinomial"}
SITES = [site for site in call_sites() if site != (request.Request, "end")]  # which reports the fault


class Fault(RuntimeError):
    """What a test raises."""


class Faults:
    """Raises in the second call of a function, and in some of the later ones."""

    def __init__(self, monkeypatch, home, name, chance, seed):
        self.original, self.chance, self.random = getattr(home, name), chance, random.Random(seed)
        self.armed, self.calls, self.raised = False, 0, 0
        faults = self

        def faulty(*args, **kwargs):
            faults.calls += faults.armed
            if faults.armed and (faults.calls == 2 or faults.random.random() < faults.chance):
                faults.raised += 1
                raise Fault(name)
            return faults.original(*args, **kwargs)

        for place in [home, *MODULES]:  # also where it has been imported to
            if place is home or vars(place).get(name) is self.original:
                monkeypatch.setattr(place, name, faulty)


def drive(engine, faults, seed, requests):
    """Runs requests that come in turn, some aborted, while faults are raised; then the rest without faults."""
    rng, live, waiting = random.Random(seed), [], [*requests]
    for turn in range(10**6):
        faults.armed = False
        while waiting and rng.random() < 0.6:
            source = waiting.pop()
            live.append((source, ask(engine, source)))
        faults.armed = turn < 4 * len(requests)
        try:
            if live and rng.random() < 0.05:
                engine.abort(rng.choice(live)[1])
            engine.step()
        except Fault:
            pass  # outside a request's own work, such as freeing a slot: the next step goes on
        finally:
            faults.armed = False
        if not waiting and not engine.busy:
            return live
    raise AssertionError("the engine does not come to an end")


def assert_unharmed(engine, live, expected, faults):
    """Nothing is left, and every request has its answer, or a part of it and the fault."""
    engine.step()
    engine.check_integrity()
    assert not engine.busy
    broken = 0
    for source, request_ in live:
        answer = expected[id(source)]
        assert request_.tokens == answer[: len(request_.tokens)]
        if request_.finish_reason == "error":
            assert isinstance(request_.error, Fault)
            broken += 1
        elif request_.finish_reason != "abort":
            assert request_.tokens == answer
    assert broken <= faults.raised


@pytest.fixture(scope="module")
def some_requests(processor, pictures):
    """Exact ones, so that each has one answer; of all ways to decode."""
    some, kinds = build_requests(processor, pictures, 24), ["denoise", "speculative", "denoise", "autoregressive"]
    return [
        (inputs, {**settings, "sub_block_size": None, "decoding": kinds[seed % 4]}, seed)
        for inputs, settings, seed in some
    ]


@pytest.mark.parametrize("sites", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_a_fault_at_any_call_ends_no_request_but_its_own(translated_dir, some_requests, monkeypatch, sites):
    """A few requests for each call site: text, an image, several images."""
    model, raised = lively(translated_dir, clean_attention="causal"), set()
    chosen = [some_requests[index] for index in (2, 5, 6, 11)]
    expected = {id(one): alone(model, one)[0] for one in chosen}
    for home, name in SITES:
        if sites == "some" and name not in OFTEN:
            continue
        faults = Faults(monkeypatch, home, name, chance=0.05, seed=1)
        some = Engine(model, max_batch_size=2, max_length=128, fused_commit=name != "_commit", prefix_cache_tokens=90)
        live = drive(some, faults, 2, chosen)
        monkeypatch.undo()
        assert_unharmed(some, live, expected, faults)
        raised |= {name} if faults.raised else set()
    assert raised >= OFTEN


@pytest.mark.slow
def test_500_requests_with_faults_everywhere(translated_dir, some_requests, monkeypatch):
    model, total, raised = lively(translated_dir, clean_attention="causal"), 0, 0
    expected = {id(one): alone(model, one)[0] for one in some_requests}
    for seed, (home, name) in enumerate(SITES):
        rng = random.Random(seed)
        faults = Faults(monkeypatch, home, name, chance=rng.choice([0.01, 0.05, 0.3]), seed=seed)
        some = Engine(
            model,
            max_batch_size=rng.choice([1, 3, 6]),
            max_length=128,
            fused_commit=seed % 2 == 0,
            prefix_cache_tokens=seed,
        )
        live = drive(some, faults, seed, rng.sample(some_requests, 16))
        monkeypatch.undo()
        assert_unharmed(some, live, expected, faults)
        total, raised = total + len(live), raised + faults.raised
    assert total >= 500
    assert raised > 100


def test_a_callable_of_the_user_that_raises_ends_its_request_alone(translated_dir, processor):
    model, inputs = lively(translated_dir, clean_attention="causal"), prompts(processor, (LONG,))
    engine = Engine(model, tokenizer=processor.tokenizer)

    def fail(*args, **kwargs):
        raise KeyError("mine")

    settings = {"max_new_tokens": 12, "eos_token_id": None}
    good = engine.add_request(**inputs, **settings)
    bad = [
        engine.add_request(**inputs, **settings, stopping_criteria=[fail]),
        engine.add_request(**inputs, **settings, logits_processor=[fail]),
        engine.add_request(**inputs, **settings, logits_processor=[lambda ids, logits: logits[:, :5]]),
        engine.add_request(**inputs, **settings, logits_processor=[lambda ids, logits: logits[:0]]),
    ]
    while engine.busy:
        engine.step()
    engine.check_integrity()
    assert [one.finish_reason for one in bad] == ["error"] * 4
    assert good.tokens == alone(model, (inputs, settings, 0))[0]
    with pytest.raises(KeyError, match="mine"):
        [*engine.stream(bad[0])]


def test_two_streams_yield_every_token_whatever_happens_between(translated_dir, some_requests):
    """An answer that ends while its stream rests is not cut short."""
    model = lively(translated_dir, clean_attention="causal")
    for seed in range(4):
        rng, engine = random.Random(seed), Engine(model, max_batch_size=2, max_length=128)
        sources = some_requests[:5]
        requests = [ask(engine, source) for source in sources]
        streams = [engine.stream(one, drafts=seed % 2 == 0) for one in requests]
        found = [[] for _ in streams]
        going = [*range(5)]
        while going:
            index = rng.choice(going)
            chunk = next(streams[index], None)
            if chunk is None:
                going.remove(index)
            elif not chunk.draft:
                found[index] += chunk.tokens
            if rng.random() < 0.5:
                engine.step()
        assert found == [alone(model, source)[0] for source in sources]
        engine.check_integrity()


def test_a_stream_that_is_never_begun_aborts_its_request_when_closed(translated_dir, some_requests):
    engine = Engine(lively(translated_dir, clean_attention="causal"), max_length=128)
    closed, dropped = (ask(engine, source) for source in some_requests[:2])
    engine.stream(closed).close()
    engine.stream(dropped)
    assert [closed.finish_reason, dropped.finish_reason] == ["abort", "abort"]
    assert not engine.busy


def test_a_second_thread_is_refused(translated_dir, some_requests):
    """While requests are in it, and in the middle of a call; an engine that is idle may change hands."""
    engine, said = Engine(lively(translated_dir, clean_attention="causal"), max_length=128), []

    def meddle(act):
        def run():
            try:
                act()
            except UserError as error:
                said.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    meddle(lambda: ask(engine, some_requests[0]))
    assert said == []
    for act in (engine.step, lambda: ask(engine, some_requests[1]), lambda: engine.abort(engine.waiting[0])):
        with pytest.raises(UserError, match="another thread"):
            act()
    assert len(engine.waiting) == 1

    own = Engine(engine.model, max_length=128, clock=lambda: meddle(own.step) or 0.0)
    ask(own, some_requests[0])
    own.step()
    assert len(said) == 1
    assert "another thread is driving" in said[0]


def bad_calls(inputs):
    """Arguments that cannot be meant."""
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    yield from ({"input_ids": value} for value in (None, [[1, 2]], "hi", ids[0], ids[None], ids[:, :0], ids.float()))
    yield {"input_ids": ids.bool()}
    yield from ({"attention_mask": value} for value in ([1], 1, torch.ones(1, 2), torch.zeros_like(ids), "x"))
    yield from ({"generator": value} for value in (1, "x", [None, None], [1]))
    yield from ({"generation_config": value} for value in ({}, "x", 1))
    yield from ({"image_grid_thw": value} for value in (None, 1, grid[:0], grid[:, :2], torch.cat([grid, grid])[:, :1]))
    yield from ({name: value} for name in ("stopping_criteria", "logits_processor") for value in (1, ["x"], "x"))
    yield from ({"num_return_sequences": 2}, {"num_return_sequences": "x"}, {"max_length": 1}, {"streamer": None})
    yield from (
        {"stop_strings": "a"},
        {"max_new_tokens": 0},
        {"top_p": "x"},
        {"eos_token_id": [None]},
        {"num_beams": 3},
    )


def test_a_bad_request_is_a_user_error(translated_dir, processor, pictures):
    engine, inputs = (
        Engine(lively(translated_dir, clean_attention="causal")),
        prompts(processor, (QUESTION, pictures[0])),
    )
    for bad in bad_calls(inputs):
        with pytest.raises(UserError):
            engine.add_request(**{**inputs, **bad})
    assert not engine.busy
    engine.check_integrity()
