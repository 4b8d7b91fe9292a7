"""What cannot be translated or loaded is refused by a message that names the folder and the value."""

import json
import shutil

import pytest
from tiny_families import save_text_only
from transformers import AutoModelForImageTextToText

from diffusionvl import load_processor
from diffusionvl.checkpoints.loading import load_model
from diffusionvl.translation.translate import MASK_TOKEN, translate


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "there is no such folder"),
        ("empty", "the folder holds no checkpoint"),
        ("without tokenizer", "has no tokenizer"),
        ("broken weights", "its weights are broken"),
        ("missing weights", "lacks weights such as '.*merger"),
    ],
)
def test_a_base_that_is_none(base_dir, tmp_path, kind, reason):
    folder = tmp_path / "base"
    if kind != "missing":
        folder.mkdir()
    if kind == "without tokenizer":
        save_text_only(folder)
    if "weights" in kind:
        model = AutoModelForImageTextToText.from_pretrained(base_dir)
        if kind == "missing weights":
            kept = {name: value for name, value in model.state_dict().items() if "merger" not in name}
            model.save_pretrained(folder, state_dict=kept)
        else:
            model.save_pretrained(folder)
            (folder / "model.safetensors").write_bytes(b"\x08")
        load_processor(base_dir).save_pretrained(folder)
    with pytest.raises(ValueError, match=reason) as error:
        translate(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_diffusion_checkpoint_is_refused(translated_dir):
    with pytest.raises(ValueError, match="block-diffusion checkpoint already"):
        translate(translated_dir)


def test_a_mask_token_with_another_meaning_is_refused(base_dir, tmp_path):
    shutil.copytree(base_dir, tmp_path / "base")
    tokenizer = load_processor(base_dir).tokenizer
    tokenizer.mask_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="another meaning already"):
        translate(str(tmp_path / "base"))


def test_a_mask_token_that_is_another_token_already_is_refused(base_dir, tmp_path):
    shutil.copytree(base_dir, tmp_path / "base")
    tokenizer = load_processor(base_dir).tokenizer
    tokenizer.add_tokens([MASK_TOKEN])
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"is that of another token.*set the tokenizer's mask_token"):
        translate(str(tmp_path / "base"))


def test_a_template_without_a_header_needs_absolute_blocks(base_dir, tmp_path):
    shutil.copytree(base_dir, tmp_path / "base")
    template = tmp_path / "base/chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant\\n", ""))
    with pytest.raises(ValueError, match="block_origin='absolute'"):
        translate(str(tmp_path / "base"))
    assert translate(str(tmp_path / "base"), block_origin="absolute")[0].config.response_header_ids == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", "8"),
        ("block_size", 8.5),
        ("block_size", None),
        ("mask_token_id", -1),
        ("mask_token_id", "x"),
        ("base_config", {}),
        ("base_config", []),
        ("response_header_ids", 5),
    ],
)
def test_a_bad_value_in_config_json_is_named(translated_dir, tmp_path, name, value):
    shutil.copytree(translated_dir, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=name) as error:
        load_model(str(tmp_path / "model"))
    assert repr(value) in str(error.value)


def test_weights_of_another_shape_are_refused(translated_dir, tmp_path):
    shutil.copytree(translated_dir, tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    config["base_config"]["text_config"]["intermediate_size"] = 64
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has shape \[128, 320\], its config\.json wants \[128, 64\]"):
        load_model(str(tmp_path / "model"))
