"""Processors load without torchvision, which this package does not need for still images."""

import sys

import pytest
import torch
from helpers import QUESTION, prompts
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusionvl import checkpoint, load_processor
from diffusionvl.checkpoint import VIDEO_REMEDY, load_config, require_video


@pytest.fixture
def without_torchvision(monkeypatch):
    monkeypatch.setattr(checkpoint, "is_torchvision_available", lambda: False)


@pytest.mark.parametrize("folder", ["base_dir", "translated_dir"])
def test_a_saved_processor_is_the_same(folder, request, pictures, tmp_path, without_torchvision):
    first = load_processor(request.getfixturevalue(folder))
    first.save_pretrained(tmp_path)
    load_config(request.getfixturevalue(folder)).save_pretrained(tmp_path)
    second = load_processor(str(tmp_path))
    assert type(second).__name__ == "Qwen2_5_VLProcessor"
    assert second.chat_template == first.chat_template
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    found, expected = (prompts(each, (QUESTION, pictures[0]), (QUESTION, *pictures)) for each in (second, first))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert found["image_grid_thw"].tolist() == [[1, 8, 8], [1, 8, 8], [1, 4, 8], [1, 4, 4]]


def test_a_processor_saved_without_torchvision_loads_with_it(translated_dir, pictures, monkeypatch):
    """transformers asks a Qwen checkpoint for a video part wherever it finds torchvision."""
    expected = prompts(load_processor(translated_dir), (QUESTION, pictures[0]))
    monkeypatch.setattr(checkpoint, "is_torchvision_available", lambda: True)
    found = prompts(load_processor(translated_dir), (QUESTION, pictures[0]))
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert found["pixel_values"].shape == expected["pixel_values"].shape


def test_prompts_are_padded_on_the_left(translated_dir):
    batch = prompts(load_processor(translated_dir), (QUESTION,), ("is it?",))
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][1, 0] == 0


def test_a_text_model_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_hidden_layers=1, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'qwen2' has no processor in transformers; give a VLM checkpoint") as error:
        load_processor(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder") as error:
        load_processor(str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(error.value)
    assert "\n" not in str(error.value)


def test_videos_need_what_the_error_names(monkeypatch, without_torchvision):
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", None)
    with pytest.raises(ImportError, match="qwen_vl_utils") as error:
        require_video()
    assert VIDEO_REMEDY in str(error.value)
    assert "pip install 'diffusionvl[video]'" in str(error.value)
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", sys)
    with pytest.raises(ImportError, match="torchvision") as error:
        require_video()
    assert str(error.value) == VIDEO_REMEDY
    monkeypatch.setattr(checkpoint, "is_torchvision_available", lambda: True)
    require_video()
