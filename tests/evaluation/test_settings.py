"""Settings of lmms-eval's tasks and users as arguments of `generate`."""

import pytest

from diffusionvl.evaluation import AR, BLOCK_DIFFUSION
from diffusionvl.evaluation.settings import KNOWN, resolve
from diffusionvl.modeling.settings import SETTINGS

MAX_NEW_TOKENS = SETTINGS["max_new_tokens"].default
GREEDY = {"do_sample": False}


def decode(task, given=None, kind=BLOCK_DIFFUSION):
    return resolve(kind, 8 if kind == BLOCK_DIFFUSION else None, task, given or {})


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({}, {"max_new_tokens": MAX_NEW_TOKENS, **GREEDY}),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False},
            {"max_new_tokens": 16, "num_beams": 1, **GREEDY},
        ),
        (
            {"max_new_tokens": 16, "do_sample": True},
            {"max_new_tokens": 16, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        ),
        (
            {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 5},
            {"max_new_tokens": 4, "do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9},
        ),
        (
            {"denoising_steps": 4, "remasking": "low_confidence_dynamic", "confidence_threshold": 0.6, "block_size": 8},
            {
                "max_new_tokens": MAX_NEW_TOKENS,
                **GREEDY,
                "denoising_steps": 4,
                "remasking": "low_confidence_dynamic",
                "confidence_threshold": 0.6,
                "block_size": 8,
            },
        ),
    ],
)
def test_block_diffusion(task, expected):
    decoding = decode(task)
    assert decoding.generate == expected
    assert decoding.samples == expected["do_sample"]
    assert decoding.notes == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 3),
        ("denoising_steps", 4),
        ("remasking", "entropy_bounded"),
        ("confidence_threshold", 0.6),
        ("entropy_bound", 0.3),
        ("sub_block_size", 4),
        ("fused_commit", False),
        ("temperature", 0.5),
        ("until", "a"),
    ],
)
def test_settings_come_from_the_task_or_from_the_model(name, value):
    decoding = decode({name: value})
    assert decoding == decode({}, {name: value}) != decode({})
    assert decoding == decode({name: value}, {name: value})
    assert decoding.generate.get(name, "".join(decoding.until)) == value


def test_every_setting_of_generate_can_be_given():
    about_tokens = {
        name for name, setting in SETTINGS.items() if setting.group in ("decoding", "denoising", "sampling")
    }
    assert about_tokens - {"num_return_sequences"} <= {*KNOWN}


def test_ar_is_greedy_unless_asked_to_draw():
    greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    assert decode({"top_p": 1.0}, kind=AR).generate == {"max_new_tokens": MAX_NEW_TOKENS, **greedy}
    drawn = decode({"temperature": 0.7, "repetition_penalty": 1.05}, kind=AR)
    assert drawn.samples
    expected = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "do_sample": True, "repetition_penalty": 1.05}
    assert drawn.generate == {"max_new_tokens": MAX_NEW_TOKENS, **expected}


def test_what_is_not_done_is_reported():
    decoding = decode({"do_sample": False, "temperature": 0.7, "image_aspect_ratio": "pad", "max_new_tokens": 8})
    assert decoding.generate["do_sample"] is False
    assert [note.split()[0] for note in decoding.notes] == ["image_aspect_ratio='pad'", "temperature=0.7"]
    same = decode({"max_new_tokens": 8, "temperature": None}, {"max_new_tokens": 8, "temperature": 0.5})
    assert same.notes == ()
    assert same.generate["temperature"] == 0.5


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("\n", ("\n",)),
        (["a", "b"], ("a", "b")),
        ([], ()),
        ([""], ()),
        (None, ()),
        ('["a","b"]', ("a", "b")),  # as a command line has them
        ("[", ("[",)),
    ],
)
def test_until(until, expected):
    assert decode({"until": until}).until == expected


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"temperature": 1, "top_p": 0}, "top_p must be"),
        ({"until": [3]}, "until must be a text"),
        ({"until": 3}, "until must be a text or a list of texts, got 3"),
        ({"visual_cot": True}, r"gen_kwargs of the task: unknown settings \['visual_cot'\]; known are max_new_tokens"),
        ({"gen_length": 3, "steps": 2}, "'gen_length' is called 'max_new_tokens' here; 'steps' is called"),
    ],
)
def test_refused(task, message):
    with pytest.raises(ValueError, match=message):
        decode(task)
