"""Rows that begin as one that has ended take its keys and values, and get the tokens that they get alone."""

import random

import pytest
import torch
from decoding_requests import LONG, alone, ask, seeded, settings_of
from helpers import QUESTION, lively, load_model, prompts
from PIL import Image

from diffusionvl.data.prompts import encode
from diffusionvl.data.record import Record
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.prefix import common, digest

NEW = {"max_new_tokens": 12, "denoising_steps": 2, "eos_token_id": None}
KINDS = [
    {"block_origin": "response"},
    {"block_origin": "absolute"},
    {"clean_attention": "causal"},
    {"block_origin": "absolute", "position_mode": "sequential"},
]


def turn(role, text, *paths):
    pictures = [{"type": "image", "image": path} for path in paths]
    return {"role": role, "content": [*pictures, {"type": "text", "text": text}]}


def answer(engine, inputs, **settings):
    request = engine.add_request(**inputs, **{**NEW, **settings})
    while engine.busy:
        engine.step()
    return request


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_chats_next_turn_reads_what_is_new(translated_dir, processor, pictures, changes):
    model = lively(translated_dir, **changes)
    engine = Engine(model, max_length=512, prefix_cache_tokens=1000)
    messages, reused = [], []
    for question in ("what is it?", LONG, "and then?"):
        messages.append(turn("user", question, *(pictures[:1] if not messages else [])))
        inputs = dict(encode(processor, [Record(messages, "chat")]))
        request = answer(engine, inputs)
        assert request.tokens == alone(model, (inputs, NEW, 0))[0]
        reused.append(request.reused)
        messages.append(turn("assistant", processor.tokenizer.decode(request.tokens, skip_special_tokens=True)))
    length = inputs["input_ids"].shape[1]
    assert reused[0] == 0
    assert 20 < reused[1] < reused[2] < length
    engine.check_integrity()


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_new_picture_does_not_make_it_read_the_earlier_ones(
    translated_dir, processor, pictures, monkeypatch, changes
):
    model, towers = lively(translated_dir, **changes), []
    engine = Engine(model, max_length=512, prefix_cache_tokens=1000)
    tower = type(model.base.model).get_image_features
    monkeypatch.setattr(
        type(model.base.model),
        "get_image_features",
        lambda self, pixels, grid, **kwargs: towers.append(len(grid)) or tower(self, pixels, grid, **kwargs),
    )
    messages = []
    for shown in ([pictures[0]], [pictures[1], pictures[2]], [], [pictures[0]]):
        messages.append(turn("user", LONG, *shown))
        inputs = dict(encode(processor, [Record(messages, "chat")]))
        expected = alone(model, (inputs, NEW, 0))[0]
        towers.clear()
        request = answer(engine, inputs)
        assert request.tokens == expected
        assert towers == ([len(shown)] if shown else [])
        messages.append(turn("assistant", processor.tokenizer.decode(request.tokens, skip_special_tokens=True)))
    engine.check_integrity()


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_prompt_may_part_from_another_anywhere_around_a_picture(translated_dir, processor, pictures, changes):
    """Wherever blocks end: a picture is reused whole or not at all."""
    model, rng = lively(translated_dir, **{"block_size": 8, **changes}), random.Random(0)
    for lead in range(9):
        engine = Engine(model, max_length=512, prefix_cache_tokens=2000)
        for number in range(4):
            record = Record(
                [turn("system", "x" * lead), turn("user", f"{rng.random()}", *pictures[: 1 + number % 2])], "r"
            )
            inputs = dict(encode(processor, [record]))
            assert answer(engine, inputs).tokens == alone(model, (inputs, NEW, 0))[0]


def test_a_row_that_began_in_a_step_that_failed_goes_on(translated_dir, processor, pictures, monkeypatch):
    """Its picture is in what it has copied, and is no longer at hand."""
    model, inputs = lively(translated_dir, clean_attention="causal"), prompts(processor, (QUESTION, pictures[0]))
    engine = Engine(model, max_length=128, prefix_cache_tokens=1000)
    expected = answer(engine, inputs).tokens

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    request = engine.add_request(**inputs, **NEW)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_run", fail)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert request.reused > 10
    while engine.busy:
        engine.step()
    assert request.tokens == expected


@pytest.mark.parametrize(
    ("changes", "engine_settings", "decodings"),
    [
        ({"block_origin": "response"}, {}, ["denoise"]),
        ({"block_origin": "absolute", "position_mode": "sequential"}, {"fused_commit": False}, ["denoise"]),
        ({"clean_attention": "causal"}, {}, ["denoise", "autoregressive", "speculative"]),
        ({"clean_attention": "causal"}, {"static_shapes": True}, ["denoise", "speculative"]),
    ],
    ids=str,
)
def test_any_schedule_gives_each_request_what_it_gets_alone(
    translated_dir, processor, pictures, changes, engine_settings, decodings
):
    """Questions that begin alike, with and without pictures, come and go; what is kept is thrown out now and then."""
    model, rng = lively(translated_dir, **changes), random.Random(0)
    questions = [
        ("hi",),
        (LONG,),
        (LONG + " and why?",),
        (QUESTION, pictures[0]),
        (QUESTION + " and why?", pictures[0]),
    ]
    questions += [(QUESTION, pictures[1]), (LONG, *pictures[:2]), (LONG, *pictures[1:])]
    inputs = [prompts(processor, question) for question in questions]
    requests = [
        (inputs[number % len(inputs)], {**settings_of(rng), "decoding": rng.choice(decodings)}, number)
        for number in range(24)
    ]
    expected = [alone(model, request)[0] for request in requests]
    reused = 0
    for seed, tokens in enumerate((60, 150, 5000)):
        rng = random.Random(seed)
        engine = Engine(model, max_batch_size=3, max_length=128, prefix_cache_tokens=tokens, **engine_settings)
        order, live = rng.sample(range(24), 24), {}
        while order or engine.busy:
            for _ in range(min(rng.choice([0, 0, 1, 2]), len(order))):
                index = order.pop()
                live[index] = ask(engine, requests[index])
            if rng.random() < 0.1 and live:
                engine.abort(live[rng.choice([*live])])
            engine.step()
            assert engine._prefixes.tokens <= tokens
        for index, request in live.items():
            reused += request.reused
            assert request.tokens == expected[index][: len(request.tokens)]
            assert request.finish_reason == "abort" or request.tokens == expected[index]
        engine.check_integrity()
    assert reused > 100


def test_another_picture_of_the_same_size_is_read(translated_dir, processor, pictures, tmp_path):
    model = lively(translated_dir)
    engine = Engine(model, prefix_cache_tokens=1000)
    other = str(tmp_path / "other.png")
    Image.open(pictures[0]).rotate(90).save(other)
    first, second = (prompts(processor, (QUESTION, path)) for path in (pictures[0], other))
    assert torch.equal(first["input_ids"], second["input_ids"])
    answer(engine, first)
    found = answer(engine, second)
    assert found.tokens == alone(model, (second, NEW, 0))[0]
    assert found.reused <= first["input_ids"].tolist()[0].index(model.config.base_config.image_token_id)
    again = answer(engine, first)
    assert again.reused > 16
    assert again.tokens == alone(model, (first, NEW, 0))[0]


def test_prompts_whose_pictures_are_in_one_piece_are_not_kept(translated_dir, processor, pictures):
    model = lively(translated_dir)
    engine = Engine(model, prefix_cache_tokens=1000)
    batch = prompts(processor, (QUESTION, pictures[0]), (QUESTION, pictures[1]))
    engine.add_batch(**batch, **NEW)
    while engine.busy:
        engine.step()
    assert engine._prefixes.tokens == 0


def test_a_row_that_is_not_a_number_is_not_kept(translated_dir, processor, pictures):
    model = lively(translated_dir)
    engine = Engine(model, prefix_cache_tokens=1000)
    broken = prompts(processor, (QUESTION, pictures[0]))
    answer(engine, {**broken, "pixel_values": torch.full_like(broken["pixel_values"], torch.nan)})
    assert engine._prefixes.tokens == 0
    assert answer(engine, broken).tokens == alone(model, (broken, NEW, 0))[0]


def test_the_least_recently_used_goes_first(translated_dir):
    model = load_model(translated_dir, block_size=4)
    length = 40
    inputs = [{"input_ids": torch.full((1, length), token)} for token in (301, 302, 303)]
    engine = Engine(model, prefix_cache_tokens=2 * (length + NEW["max_new_tokens"]))
    answer(engine, inputs[0])
    answer(engine, inputs[1])
    assert answer(engine, inputs[0]).reused > length - 5
    answer(engine, inputs[2])  # the second one goes
    assert answer(engine, inputs[0]).reused > length - 5
    assert answer(engine, inputs[1]).reused == 0


def test_draws_do_not_depend_on_what_was_kept(translated_dir, processor):
    model, inputs = lively(translated_dir), prompts(processor, (LONG,))
    engine = Engine(model, prefix_cache_tokens=1000)
    answer(engine, inputs)
    request = engine.add_request(**inputs, **NEW, temperature=1.2, generator=seeded(3))
    while engine.busy:
        engine.step()
    assert request.reused > 10
    assert request.tokens == alone(model, (inputs, {**NEW, "temperature": 1.2}, 3))[0]


def test_rows_are_compared_column_by_column():
    first = torch.tensor([[1, 2, 3, 4], [4, 4, 4, 4]])
    assert common(first, first) == 4
    assert common(first, first[:, :2]) == 2
    assert common(first, torch.tensor([[1, 2, 9, 4], [4, 4, 4, 4]])) == 2
    assert common(first, torch.tensor([[1, 2, 3, 4], [4, 5, 4, 4]])) == 1
    assert common(first, first[:, :0]) == 0


def test_a_digest_knows_names_shapes_and_values():
    media = [{"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"b": torch.zeros(2, 3)}, {"a": torch.ones(2, 3)}, {}]
    assert len({digest(one) for one in media}) == 5
    assert digest({"a": torch.zeros(2, 3), "b": torch.ones(1)}) == digest({"b": torch.ones(1), "a": torch.zeros(2, 3)})
