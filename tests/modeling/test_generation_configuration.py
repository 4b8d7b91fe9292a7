"""Settings and inputs of `generate`: bad ones are one `ValueError` that names them, and nobody's config is changed."""

import math

import pytest
import torch
from helpers import QUESTION, load_model, prompts
from transformers import GenerationConfig

from diffusionvl import DiffusionVLGenerationConfig
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.settings import SETTINGS

BAD = [
    *(("max_new_tokens", value, "at least 1") for value in (0, -1, 2.0, "8", None, True, math.nan)),
    *(("denoising_steps", value, "at least 1") for value in (0, -1, 2.0, "8", True, math.nan)),
    *(("remasking", value, "low_confidence_static") for value in ("random", None, 1, ["low_confidence_static"])),
    *(("confidence_threshold", value, "[0, 1]") for value in (-0.1, 1.1, "0.5", None, True, math.nan)),
    *(("temperature", value, "at least 0") for value in (-1, math.inf, "1", None, False, math.nan)),
    *(("top_k", value, "at least 0") for value in (-1, 5.0, "5", None, True, math.nan)),
    *(("top_p", value, "(0, 1]") for value in (0, -1, 1.1, "1", None, True, math.nan)),
    *(("sub_block_size", value, "divides the block size") for value in (0, -1, 2.0, "4", True)),
    *(("entropy_bound", value, "at least 0") for value in (-0.1, math.inf, "1", None, True, math.nan)),
    *(("stop_strings", value, "text") for value in ("", 1, ["a", ""], [None], True)),
    *(("max_time", value, "seconds") for value in (-1, math.inf, "1", True, math.nan)),
    *(("do_sample", value, "True or False") for value in (1, "yes")),
    *(("num_beams", value, "1, since") for value in (0, 2, None)),
    *(("repetition_penalty", value, "above 0") for value in (0, -1.0, "1", None, math.nan)),
    *(("min_new_tokens", value, "at least 0") for value in (-1, 1.0, None)),
    *(("use_cache", value, "True or False") for value in (0, None)),
    *(("fused_commit", value, "True or False") for value in (1, "yes", None)),
    *(("return_dict_in_generate", value, "True or False") for value in (1, "yes", None)),
    *(("output_history", value, "True or False") for value in (0, "no", None)),
    *(("eos_token_id", value, "token id") for value in ("<eos>", 1.0, -1, [1, None], ["a"], True)),
    *(("pad_token_id", value, "token id") for value in ("<pad>", 1.0, -1, [1], False)),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_value_is_reported_with_its_name_and_range(name, value, allowed):
    with pytest.raises(ValueError) as error:
        DiffusionVLGenerationConfig(**{name: value})
    for part in (name, repr(value), allowed):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 1, "denoising_steps": 1, "confidence_threshold": 0, "temperature": 0, "top_k": 0},
        {"denoising_steps": None, "confidence_threshold": 1, "temperature": 2, "top_k": 10**6, "top_p": 1},
        {"entropy_bound": 0, "stop_strings": ["a", "b"], "max_time": 0, "remasking": "entropy_bounded"},
        {"sub_block_size": 1},
        {"stop_strings": "a", "max_time": 0.5},
        {"eos_token_id": [1, 2], "pad_token_id": 0, "remasking": "low_confidence_dynamic", "top_p": 1e-9},
    ],
)
def test_values_at_the_edges_of_their_ranges_are_kept(settings, tmp_path):
    config = DiffusionVLGenerationConfig(**settings)
    config.save_pretrained(tmp_path)
    read = DiffusionVLGenerationConfig.from_pretrained(tmp_path)
    for name, value in settings.items():
        assert getattr(config, name) == getattr(read, name) == value


@pytest.fixture
def model(translated_dir):
    return load_model(translated_dir)


@pytest.fixture
def inputs(processor, pictures):
    return prompts(processor, (QUESTION, pictures[2]), ("hi",))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("eos_token_ids", "did you mean 'eos_token_id'?"),
        ("denoise_steps", "did you mean 'denoising_steps'?"),
        ("max_tokens", "did you mean 'max_new_tokens'?"),
        ("validate", "the settings are block_size, bos_token_id, choices, confidence_threshold"),
        ("_commit_hash", "_commit_hash"),
        ("past_key_values", "a cache of its own"),
        ("assistant_model", "drafts for itself"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest_one_or_the_reason(model, inputs, name, said):
    with pytest.raises(UserError) as error:
        model.generate(**inputs, **{name: 1})
    assert name in str(error.value)
    assert said in str(error.value)
    if name != "_commit_hash":
        with pytest.raises(UserError, match=name):
            DiffusionVLGenerationConfig(**{name: 1})


def test_the_page_lists_every_setting(request):
    page = (request.config.rootpath / "docs/modeling.md").read_text(encoding="utf-8")
    for name, setting in SETTINGS.items():
        assert f"| `{name}` | `{setting.default}` | {setting.range.allowed} | {setting.meaning} |" in page


def test_every_setting_has_a_default_in_its_range_and_a_meaning():
    for name, setting in SETTINGS.items():
        assert setting.range.fits(setting.default), name
        assert setting.meaning.endswith("."), name
        assert getattr(DiffusionVLGenerationConfig(), name) == setting.default


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"denoising_steps": 9}, ["denoising_steps=9", "1 to 8"]),
        ({"sub_block_size": 3}, ["sub_block_size=3", "block size 8"]),
        ({"max_new_tokens": "8"}, ["max_new_tokens", "'8'"]),
        ({"generation_config": {}}, ["GenerationConfig", "dict"]),
        ({"generation_config": GenerationConfig(num_beams=4)}, ["num_beams", "has no beams", "4"]),
        ({"generation_config": GenerationConfig(typical_p=0.5)}, ["typical_p", "top_p"]),
        ({"num_beams": 2}, ["num_beams", "has no beams", "2"]),
        ({"max_length": 3}, ["max_length=3", "no room"]),
        ({"do_sample": True, "temperature": 0}, ["do_sample=True", "temperature 0"]),
        ({"num_return_sequences": 2}, ["num_return_sequences=2", "do_sample=True"]),
        ({"logits_processor": [1]}, ["logits_processor", "callables"]),
        ({"generator": [torch.Generator()] * 3, "temperature": 1.0}, ["3 generators", "2 prompts"]),
        ({"attention_mask": torch.ones(2, 3)}, ["attention_mask", "[2, 3]"]),
        ({"pixel_values": None}, ["image", "no image or video inputs"]),
        ({"input_ids": torch.ones(2, 0).long()}, ["[2, 0]"]),
        ({"input_ids": torch.ones(4).long()}, ["[4]"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_inputs_that_cannot_be_used(model, inputs, settings, said):
    if settings.get("pixel_values", 0) is None:
        settings = {**settings, "image_grid_thw": None}
    with pytest.raises(ValueError) as error:
        model.generate(**{**inputs, **settings})
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize("strange", ["-1", "{vocabulary}"])
def test_ids_that_the_vocabulary_lacks(model, inputs, strange):
    """In a batch on a server they would stop everybody; in the padding they are nobody's."""
    vocabulary = model.config.get_text_config().vocab_size
    strange, padding = int(strange.format(vocabulary=vocabulary)), inputs["attention_mask"] == 0
    expected = model.generate(**inputs, max_new_tokens=4)[:, -4:]
    inputs["input_ids"][padding] = strange
    assert torch.equal(model.generate(**inputs, max_new_tokens=4)[:, -4:], expected)
    inputs["input_ids"][1, -2] = strange
    with pytest.raises(ValueError, match=f"the id {strange}, but the model's vocabulary has {vocabulary}"):
        model.generate(**inputs)


def test_a_generator_must_be_on_the_models_device(model, inputs):
    with pytest.raises(ValueError, match="on cpu cannot draw for a model on meta"):
        model.to("meta").generate(**inputs, generator=[None, torch.Generator()])


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.uint8, torch.float32])
def test_prompts_must_be_padded_on_the_left(model, inputs, kind):
    good = inputs.pop("attention_mask")
    assert not good.all()
    expected = model.generate(**inputs, attention_mask=good, max_new_tokens=4)
    assert torch.equal(model.generate(**inputs, attention_mask=good.to(kind), max_new_tokens=4), expected)
    hole, empty = good.clone(), good.clone()
    hole[0, 3] = 0
    empty[1] = 0
    for bad in (good.flip(1), hole, empty):
        with pytest.raises(ValueError, match="padding_side='left'"):
            model.generate(**inputs, attention_mask=bad.to(kind))


def test_pictures_need_placeholders(model, processor, pictures):
    text, image = prompts(processor, (QUESTION,)), prompts(processor, (QUESTION, pictures[0]))
    with pytest.raises(ValueError, match=r"pixel_values.*no placeholders"):
        model.generate(**{**image, **text})


def test_a_call_changes_no_config(model, inputs):
    own, given = model.generation_config, DiffusionVLGenerationConfig(max_new_tokens=5, output_history=True)
    before = own.to_dict(), given.to_dict()
    model.generate(**inputs, max_new_tokens=3, denoising_steps=2, eos_token_id=[1])
    output = model.generate(**inputs, generation_config=given, max_new_tokens=3, return_dict_in_generate=True)
    assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + 3
    assert output.history  # the given config counts, except where the call says otherwise
    assert (own.to_dict(), given.to_dict()) == before


def test_a_given_config_without_special_tokens_takes_those_of_the_model(model, inputs):
    prompt = inputs["input_ids"].shape[1]
    free = model.generate(**inputs, eos_token_id=None, max_new_tokens=12)
    model.generation_config.eos_token_id = [int(free[0, prompt + 1]), int(free[1, prompt + 1])]
    expected = model.generate(**inputs, max_new_tokens=12)
    assert expected.shape[1] < free.shape[1]
    config = DiffusionVLGenerationConfig(max_new_tokens=12)
    assert torch.equal(model.generate(**inputs, generation_config=config), expected)
