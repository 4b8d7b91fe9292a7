"""Processors load without torchvision, which this package does not need for still images."""

import pytest
import torch
from helpers import QUESTION, prompts
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.video_processing_utils import BaseVideoProcessor

from diffusionvl import checkpoint, load_processor
from diffusionvl.checkpoint import load_config


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


def test_a_saved_processor_has_settings_for_a_video_part(translated_dir):
    """transformers asks a Qwen checkpoint for them wherever it finds torchvision."""
    settings, _ = BaseVideoProcessor.get_video_processor_dict(translated_dir)
    assert settings["patch_size"] == load_processor(translated_dir).image_processor.patch_size


def test_videos_without_torchvision_are_refused_with_the_remedy(translated_dir, without_torchvision):
    processor = load_processor(translated_dir)
    with pytest.raises(ImportError, match=r"torchvision.*diffusionvl\[video\]"):
        processor(text=["<|video_pad|>"], videos=[torch.zeros(2, 3, 32, 32)])


def test_prompts_are_padded_on_the_left(translated_dir):
    batch = prompts(load_processor(translated_dir), (QUESTION,), ("is it?",))
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][1, 0] == 0


def test_a_text_model_without_a_tokenizer_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_hidden_layers=1, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer") as error:
        load_processor(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder") as error:
        load_processor(str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(error.value)
    assert "\n" not in str(error.value)
