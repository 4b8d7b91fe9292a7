"""LoRA: what is trained and saved, and that adapter, merged model and resumed run agree."""

import json

import pytest
import torch
import yaml
from helpers import QUESTION, prompts
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.cli import main as command
from diffusionvl.train import main
from diffusionvl.training.parts import Parts

LORA = {"lora_r": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def recipe(base_dir, translated_dir, pictures, tmp_path_factory):
    """A function that writes a recipe with LoRA, with settings as keywords, and returns its path and output_dir."""
    root = tmp_path_factory.mktemp("lora")
    lines = []
    for n, answer in enumerate(("red", "teal", "blue", "no")):
        messages = [{"role": "user", "content": f"<image>{QUESTION}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"images": [pictures[n % 3]], "messages": messages}))
    (root / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def write(name, **settings):
        folder = root / name
        folder.mkdir(exist_ok=True)
        objective = settings.get("objective", "block_diffusion")
        defaults = {
            "model": translated_dir if objective == "block_diffusion" else base_dir,
            "train_records": [str(root / "records.jsonl")],
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "logging_steps": 1,
            "save_strategy": False,
            "disable_tqdm": True,
            **LORA,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(defaults | settings), encoding="utf-8")
        return str(folder / "recipe.yaml"), folder / "out"

    return write


@pytest.fixture(scope="module")
def trained(recipe):
    """The folder of a trained adapter."""
    path, out = recipe("trained")
    assert main([path]) == 0
    return out


def test_matrices_and_the_mask_tokens_row_are_saved_and_nothing_else(trained, translated_dir):
    saved = load_file(trained / "adapter_model.safetensors")
    rows = [name for name in saved if "lora_" not in name]
    assert [name.rpartition(".")[2] for name in rows] == ["trainable_tokens_delta"]
    assert not any("visual" in name for name in saved)
    assert not (trained / "model.safetensors").exists()
    before, after = load_model(translated_dir), load_model(str(trained))
    mask = before.config.mask_token_id
    assert torch.equal(saved[rows[0]][0], after.get_input_embeddings().weight[mask])
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert {Parts(after).of(name) for name in changed} == {"language_model"}
    assert sum("embed_tokens" in name for name in changed) == 1
    embeddings = (each.get_input_embeddings().weight for each in (before, after))
    rows = (torch.ne(*embeddings)).any(1).nonzero().flatten()
    assert rows.tolist() == [mask]


def answer(model, processor, pictures):
    inputs = prompts(processor, (QUESTION, pictures[0]), ("is it?",))
    return model.eval().generate(**inputs, max_new_tokens=16)


def test_adapter_and_merged_model_answer_alike(trained, translated_dir, pictures, tmp_path, capsys):
    merged = str(tmp_path / "merged")
    assert command(["merge", str(trained), "--out", merged]) == 0
    assert f"merged {trained} into {translated_dir}\nwrote {merged}" in capsys.readouterr().out
    processor = load_processor(merged)
    expected = answer(load_model(merged), processor, pictures)
    assert torch.equal(answer(load_model(str(trained)), load_processor(str(trained)), pictures), expected)
    injected, info = AutoModelForImageTextToText.from_pretrained(trained, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert torch.equal(answer(injected, processor, pictures), expected)
    assert not torch.equal(answer(load_model(translated_dir), processor, pictures), expected)


def test_an_adapter_is_trained_on_in_full_and_not_by_another_adapter(trained, recipe, capfd):
    path, out = recipe("further", model=str(trained), max_steps=1)
    assert main([path]) == 2
    assert "run `diffusionvl merge` first" in capfd.readouterr().err
    settings = dict.fromkeys(("lora_r", "lora_target_modules"))
    path, out = recipe("further", model=str(trained), max_steps=1, learning_rate=0.0, **settings)
    assert main([path]) == 0
    expected = load_model(str(trained)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_model(str(out)).state_dict().items())


@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_a_resumed_run_is_the_uninterrupted_one(recipe, objective):
    saving = {"save_strategy": "steps", "save_steps": 2, "objective": objective, "lora_dropout": 0.1}
    whole, expected = recipe(f"{objective} whole", **saving)
    assert main([whole]) == 0
    cut, out = recipe(f"{objective} cut", resume_from_checkpoint="last", **saving)
    assert main([cut, "--max_steps", "2"]) == 0
    assert main([cut]) == 0
    weights = load_file(expected / "adapter_model.safetensors")
    for name, value in load_file(out / "adapter_model.safetensors").items():
        assert torch.equal(value, weights[name]), name


def test_a_projector_is_trained_in_full_beside_the_matrices(recipe, translated_dir):
    path, out = recipe("projector", train_modules=["language_model", "projector"], max_steps=2)
    assert main([path]) == 0
    model, before = load_model(str(out)), load_model(translated_dir).state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    changed = {Parts(model).of(name) for name in changed}
    assert changed == {"language_model", "projector"}


def test_target_modules_are_the_ones_that_are_named(recipe):
    path, out = recipe("targets", lora_target_modules=["q_proj", "up_proj"], max_steps=1)
    assert main([path]) == 0
    saved = load_file(out / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved if "lora_" in name} == {"q_proj", "up_proj"}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"lora_target_modules": ["c_attn"]}, "lora_target_modules ['c_attn']: give names of linear layers"),
        ({"quantization": "4bit"}, "quantization='4bit' needs an NVIDIA GPU and bitsandbytes"),
        ({"model": "none"}, "none: there is no such folder"),
    ],
)
def test_an_adapter_that_can_not_be(recipe, capfd, settings, part):
    path, _ = recipe("refused", **settings)
    assert main([path]) == 2
    assert part in capfd.readouterr().err.splitlines()[-1]


def damaged(trained, tmp_path, name, change):
    """A copy of the adapter with one file changed."""
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("adapter_config.json", lambda data: data[:50], "names no base_model_name_or_path"),
        ("adapter_config.json", lambda data: data.replace(b"translated", b"gone"), "its base cannot be loaded"),
        ("adapter_model.safetensors", lambda data: data[:500], "its adapter does not fit"),
        ("adapter_config.json", lambda data: data.replace(b'"r": 4', b'"r": 8'), "its adapter does not fit"),
    ],
)
def test_a_broken_adapter_is_told(trained, tmp_path, capsys, name, change, part):
    folder = damaged(trained, tmp_path, name, change)
    assert command(["merge", folder, "--out", f"{folder}/merged"]) == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_what_is_no_adapter_is_not_merged(translated_dir, trained, tmp_path, capsys):
    assert command(["merge", translated_dir, "--out", str(tmp_path / "merged")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert command(["merge", str(trained), "--out", str(trained)]) == 2
    assert "is or holds" in capsys.readouterr().err
