"""An exported checkpoint answers in a process that does not have this package, and as before in one that has it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import load_model, prompts, run
from tiny_families import save_base
from transformers import AutoModelForCausalLM

from diffusionvl.checkpoints import loading as checkpoint
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.commands import draft
from diffusionvl.translation.translate import translate

QUESTION = "what shape is in the image?"
# What the model card says, for folders and pictures that come as arguments.
FOREIGN = """
import json, sys
sys.modules["diffusionvl"] = None  # importing it fails
import transformers
from PIL import Image

def answer(folder, auto_model, *pictures):
    model = getattr(transformers, auto_model).from_pretrained(folder, trust_remote_code=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    content = [{"type": "image", "image": Image.open(picture)} for picture in pictures]
    content = content + [{"type": "text", "text": QUESTION}] if pictures else QUESTION
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    tokenizer = getattr(processor, "tokenizer", processor)
    constrained = model.generate(**inputs, json_schema={"const": {"a": [1, "b"]}}, tokenizer=tokenizer)[0]
    text = tokenizer.decode(constrained[inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    return model.generate(**inputs, max_new_tokens=20)[0].tolist(), json.loads(text)

image_folder, text_folder, *pictures = sys.argv[1:]
print(json.dumps([
    answer(image_folder, "AutoModelForImageTextToText", *pictures), answer(text_folder, "AutoModelForCausalLM")
]))
""".replace("QUESTION", repr(QUESTION))


@pytest.fixture(scope="module")
def checkpoints(translated_dir, tmp_path_factory):
    """Folders of a model that reads images, in several files, and of one that reads text."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(translated_dir, folder / "image")
    (folder / "image/model.safetensors").unlink()
    load_model(translated_dir).save_pretrained(folder / "image", max_shard_size="1MB")
    save_base("Llama", str(folder / "base"))
    save_checkpoint(*translate(str(folder / "base")), str(folder / "text"))
    return folder


def test_a_process_without_the_package(checkpoints, pictures, tmp_path, capsys):
    exports = []
    for name in ("image", "text"):
        code, out, err = run(capsys, "export", str(checkpoints / name), str(tmp_path / name))
        exports.append(str(tmp_path / name))
        assert (code, out, err) == (0, f"wrote {exports[-1]}\n", "")
    assert len([*(tmp_path / "image").glob("*.safetensors")]) > 1
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "code")}
    child = subprocess.run(
        [sys.executable, "-c", FOREIGN, *exports, *pictures[:2]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert child.returncode == 0, child.stderr
    questions = ((QUESTION, *pictures[:2]), (QUESTION,))
    for name, question, (found, constrained) in zip(
        ("image", "text"), questions, json.loads(child.stdout), strict=True
    ):
        assert constrained == {"a": [1, "b"]}
        processor = load_processor(str(checkpoints / name))
        expected = load_model(checkpoints / name).generate(**prompts(processor, question), max_new_tokens=20)
        assert found == expected[0].tolist()
        exported = load_model(tmp_path / name).generate(**prompts(processor, question), max_new_tokens=20)
        assert torch.equal(exported, expected)


def test_the_model_card_says_how_to_load_it(checkpoints, tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(checkpoints / "text" / name, tmp_path / "plain" / name)  # without a card
    run(capsys, "export", str(tmp_path / "plain"), str(tmp_path / "once"))
    run(capsys, "export", str(tmp_path / "once"), str(tmp_path / "twice"))
    cards = [(tmp_path / name / "README.md").read_text() for name in ("once", "twice")]
    assert cards[0].count("AutoModelForCausalLM.from_pretrained(") == 1
    assert cards[0] == cards[1]


def test_what_can_not_be_exported(base_dir, checkpoints, tmp_path, capsys):
    broken, empty, adapter = tmp_path / "broken", tmp_path / "empty", tmp_path / "adapter"
    cut, silent = tmp_path / "cut", tmp_path / "silent"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base_dir}))
    shutil.copytree(checkpoints / "image", broken)
    min(broken.glob("*.safetensors")).unlink()
    shutil.copytree(checkpoints / "text", empty)
    (empty / "model.safetensors").unlink()
    shutil.copytree(checkpoints / "text", cut)
    os.truncate(cut / "model.safetensors", (cut / "model.safetensors").stat().st_size - 8)
    shutil.copytree(checkpoints / "text", silent)
    (silent / "chat_template.jinja").write_text("hello")
    for folder, reason in (
        (base_dir, "a 'qwen2_5_vl' model needs no code; run `diffusionvl translate`"),
        (tmp_path, "holds no checkpoint"),
        (adapter, "holds an adapter; run `diffusionvl merge`"),
        (broken, "lacks ['model-00001-of-"),
        (empty, "holds no .safetensors file"),
        (cut, "its weights are broken"),
        (silent, "the chat template writes 'hello'"),
    ):
        code, out, err = run(capsys, "export", str(folder), str(tmp_path / "out"))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert reason in err
    code, _, err = run(capsys, "export", str(checkpoints / "text"), str(checkpoints / "image"))
    assert code == 2
    assert "which `diffusionvl export` did not write; give a new folder" in err


def test_what_is_saved_from_an_export_names_no_code(checkpoints, tmp_path, capsys):
    run(capsys, "export", str(checkpoints / "image"), str(tmp_path / "export"))
    checkpoint.load_model(str(tmp_path / "export")).save_pretrained(tmp_path / "saved")
    load_processor(str(tmp_path / "export")).save_pretrained(tmp_path / "saved")
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" in json.loads((tmp_path / "export" / name).read_text())
        assert "auto_map" not in json.loads((tmp_path / "saved" / name).read_text())


def test_a_checkpoint_needs_no_export(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "text")
    assert type(model).__module__ == "diffusionvl.modeling.modeling_diffusionvl"
    assert "auto_map" not in json.loads((checkpoints / "text/config.json").read_text())


def test_drafts_are_exported_with_their_base(base_dir, pictures, tmp_path, capsys):
    """The folder needs no other one, and answers as the base does."""
    arguments = draft.build_parser().parse_args([base_dir, "--records", "none", "--out", str(tmp_path)])
    draft.start(arguments, tmp_path / "drafts")
    code, _, err = run(capsys, "export", str(tmp_path / "drafts"), str(tmp_path / "hub"))
    assert code == 0, err
    trained = checkpoint.load_model(str(tmp_path / "drafts")).draft.state_dict()
    shutil.rmtree(tmp_path / "drafts")
    model = checkpoint.load_model(str(tmp_path / "hub")).eval()
    assert all(torch.equal(value, trained[name]) for name, value in model.draft.state_dict().items())
    assert model.config.draft_adapter["base"] is None
    inputs = prompts(load_processor(str(tmp_path / "hub")), (QUESTION, pictures[0]))
    settings = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    expected = checkpoint.load_model(base_dir).eval().generate(**inputs, **settings, do_sample=False)
    output = model.generate(**inputs, **settings, return_dict_in_generate=True)
    assert output.sequences.tolist() == expected.tolist()
    assert output.acceptance is not None  # it drafts
    assert (tmp_path / "hub/modeling_diffusionvl.py").exists()
