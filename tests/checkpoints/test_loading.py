"""Processors load without torchvision, which this package does not need for still images."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import QUESTION, conversation, prompts
from PIL import Image
from tiny_families import build_llava, save_base
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, Qwen2Config, Qwen2ForCausalLM
from transformers.video_processing_utils import BaseVideoProcessor

from diffusionvl import load_processor
from diffusionvl.checkpoints import checkpoint
from diffusionvl.checkpoints.loading import load_config, load_model
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.prompts import encode, question


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


def test_prompts_open_as_the_stock_processor_opens_them(pictures, tmp_path):
    """LLaVA 1.5's template leaves the beginning of sequence to the tokenizer; it stands in every prompt, once."""
    model, processor = build_llava("clip")
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    opening = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = opening
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    stock, image = AutoProcessor.from_pretrained(tmp_path), Image.open(pictures[0])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = stock(text=[text], images=[image], return_tensors="pt")["input_ids"][0]
    assert expected.tolist().count(tokenizer.bos_token_id) == 1
    for _ in range(2):
        loaded = load_processor(str(tmp_path))
        assert torch.equal(encode(loaded, [question(QUESTION, [image])])["input_ids"][0], expected)
        trained = ConversationEncoder(loaded).encode(conversation((QUESTION, "red", pictures[0]))).input_ids
        assert torch.equal(trained[: len(expected)], expected)
        loaded.save_pretrained(tmp_path)


def test_the_processor_is_the_one_that_the_folder_names(translated_dir, tmp_path, without_torchvision):
    """A LLaVA over Pixtral, say, has Pixtral's."""
    shutil.copytree(translated_dir, tmp_path / "model")
    path = tmp_path / "model/processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_processor_class": "Qwen2VLProcessor"}))
    assert type(load_processor(str(tmp_path / "model"))).__name__ == "Qwen2VLProcessor"
    path.write_text(json.dumps(settings | {"base_processor_class": "MyProcessor"}))
    with pytest.raises(ValueError, match="MyProcessor is not one of transformers' processors"):
        load_processor(str(tmp_path / "model"))
    (tmp_path / "model/tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_processor(str(tmp_path / "model"))


def test_a_package_that_a_processor_needs_is_told(tmp_path, monkeypatch):
    save_base("SmolVLM", str(tmp_path))
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(ValueError, match=r"has no processor .*`pip install num2words`") as error:
        load_processor(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_wrong_value_in_config_json_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": "3"}')
    with pytest.raises(ValueError, match="'num_hidden_layers' expected int, got str") as error:
        load_config(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "null", "[" * 5000, "{"])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_broken_settings_are_named_in_one_line(translated_dir, tmp_path, name, content):
    shutil.copytree(translated_dir, tmp_path / "model")
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path / "model")) as error:
        load_processor(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


def test_a_mask_token_without_a_row_and_a_config_without_a_base_are_refused(translated_dir, tmp_path):
    for change, reason in (
        ({"mask_token_id": 10**6}, "mask_token_id is 1000000"),
        ({"base_config": None}, "base_config"),
    ):
        folder = tmp_path / next(iter(change))
        shutil.copytree(translated_dir, folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=reason):
            load_model(str(folder))


def test_the_processor_opens_pictures_as_training_does(translated_dir, tmp_path):
    """Through transformers' own chat template, too: a ramp of 16 bits is not clipped, transparent parts are white."""
    processor = load_processor(translated_dir)
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    means = []
    for name in ("deep.png", "clear.png"):
        content = [{"type": "image", "image": str(tmp_path / name)}, {"type": "text", "text": QUESTION}]
        message = [{"role": "user", "content": content}]
        inputs = processor.apply_chat_template(message, tokenize=True, return_dict=True, return_tensors="pt")
        scale, pixels = processor.image_processor, inputs["pixel_values"]
        first = pixels.reshape(len(pixels), 3, -1)[:, 0] * scale.image_std[0] + scale.image_mean[0]
        means.append(float(first.mean()))
    assert means == pytest.approx([0.5, 1.0], abs=0.01)
    processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "Qwen2VLImageProcessor"
