"""Assembly: a stock checkpoint from a language model and a vision tower, which aligns, translates and answers."""

import json

import pytest
import torch
from helpers import QUESTION, prompts
from test_cli import run
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from diffusionvl.checkpoint import load_model, load_processor
from diffusionvl.modeling.families import module_of
from diffusionvl.quickstart.base import build_tokenizer
from diffusionvl.quickstart.easy_vqa import corpus

SIDE, PATCH = 32, 8
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
# As SmolLM2's and Qwen2.5's: takes strings alone, and writes a system prompt of its own.
LM_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nbe brief<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def lm_dir(tmp_path_factory):
    """Folder of a tiny Llama with one free row in its embeddings."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = build_tokenizer([*corpus(), "be brief"])
    tokenizer.chat_template = LM_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tower_dirs(tmp_path_factory):
    """Folders of a SigLIP with its text side and of a CLIP tower alone."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("siglip", "clip")}
    text = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folders["siglip"])
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folders["siglip"])
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folders["clip"])
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=[0.4, 0.5, 0.6]
    ).save_pretrained(folders["clip"])
    return folders


def parameters(folder):
    return dict(load_model(folder, torch.float32).named_parameters())


@pytest.mark.parametrize("tower", ["siglip", "clip"])
def test_assemble_align_translate_train_infer(lm_dir, tower_dirs, pictures, tmp_path, capsys, tower):
    """The whole journey by commands; aligning moves the projector alone, training moves all parts."""
    folders = {name: str(tmp_path / name) for name in ("base", "aligned", "init", "model", "ar")}
    parts = ("--lm", lm_dir, "--vision", tower_dirs[tower], "--image-grid", "single")
    code, out, err = run(capsys, "assemble", *parts, "--out", folders["base"])
    assert code == 0, err
    assert out.splitlines()[-1] == f"wrote {folders['base']}"
    records = [
        {
            "images": [path],
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
        }
        for path in pictures
    ]
    for record in records:
        record["messages"].append({"role": "assistant", "content": "red"})
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    def train(model, out, *settings):
        common = ("--train_records", str(path), "--max_steps", "2", "--save_strategy", "no", "--learning_rate", "1e-2")
        argv = ("--model", folders[model], "--output_dir", folders[out], "--warmup_steps", "0", *common, *settings)
        code, _, err = run(capsys, "train", *argv)
        assert code == 0, err
        before, after = parameters(folders[model]), parameters(folders[out])
        return {module_of(name) for name, value in after.items() if not torch.equal(value, before[name])}

    assert train("base", "aligned", "--objective", "ar", "--train_modules", "projector") == {"projector"}
    everything = {"vision_tower", "projector", "language_model"}
    assert train("aligned", "ar", "--objective", "ar") == everything
    assert run(capsys, "translate", folders["aligned"], "--out", folders["init"], "--block-size", "4")[0] == 0
    assert train("init", "model") == everything
    argv = ("--model", folders["model"], "--image", pictures[1], "--prompt", QUESTION, "--device", "cpu")
    code, out, err = run(capsys, "infer", *argv, "--json", "--max-new-tokens", "6")
    assert code == 0, err
    assert json.loads(out)["tokens"] > 0
    model, processor = load_model(folders["model"]).eval(), load_processor(folders["model"])
    inputs = prompts(processor, (QUESTION, pictures[0]))
    assert (inputs["input_ids"] == model.config.base_config.image_token_id).sum() == (SIDE // PATCH) ** 2
