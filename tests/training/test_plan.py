"""`--dry_run`: what it says is what a run would be, and what it estimates is near what a step keeps."""

import json
import re

import pytest
import torch
import yaml
from helpers import collated, load_model, some_records

from diffusionvl import BlockDiffusionConfig
from diffusionvl.checkpoints.loading import load_config, load_processor
from diffusionvl.train import main
from diffusionvl.training.cost.memory import estimate
from diffusionvl.training.cost.plan import build_meta_model
from diffusionvl.training.parts import Parts

ANSWER = {"role": "assistant", "content": "no"}


def settings(tmp_path, **changes):
    return BlockDiffusionConfig(output_dir=str(tmp_path), use_cpu=True, **changes)


def kept_bytes(model, batch):
    """Bytes that a forward pass keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor  # held, so that no other tensor takes its place
        return tensor

    names = ("input_ids", "block_ids", "stream_ids", "document_ids", "position_ids", "pixel_values", "image_grid_thw")
    carries = (batch["labels"] != -100).flatten().nonzero()[:, 0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(**{name: batch[name] for name in names}, token_indices=carries, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activations_are_estimated(translated_dir, processor, pictures, tmp_path):
    model = load_model(translated_dir)
    batch = collated(model, processor, some_records(pictures))
    tokens, losses = batch["input_ids"].numel(), int((batch["labels"] != -100).sum())
    items = estimate(model, settings(tmp_path), tokens, losses, batch["pixel_values"].shape[0])
    expected = sum(item.bytes for item in items if item.name.startswith(("activations", "logits")))
    assert 0.65 < expected / kept_bytes(model, batch) < 1.35


def by_name(model, args):
    return {item.name: item.bytes for item in estimate(model, args, 0, 0, 0)}


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizer"),
    [
        ({}, 4, 4, 8),
        ({"deepspeed": "configs/deepspeed/zero2.json", "bf16": True}, 2, 2 / 8, 12 / 8),
        ({"deepspeed": "configs/deepspeed/zero3.json", "bf16": True}, 2 / 8, 2 / 8, 12 / 8),
        ({"deepspeed": "configs/deepspeed/zero3_offload.json", "bf16": True}, 0, 2 / 8, 0),
        ({"fsdp_config": "configs/fsdp/fsdp2.json", "bf16": True}, 4 / 8, 4 / 8, 8 / 8),
    ],
)
def test_weights_gradients_and_optimizer_are_counted(translated_dir, tmp_path, engine, weights, gradients, optimizer):
    model = build_meta_model(load_model(translated_dir).config, "float32")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(Parts(model).of(name) != "vision_tower")
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    args = settings(tmp_path, dry_run=True, dry_run_processes=8, **engine)
    found = by_name(model, args)
    assert [found[name] for name in ("weights", "gradients", "optimizer")] == pytest.approx(
        [weights * total, gradients * trained, optimizer * trained]
    )


@pytest.fixture
def recipe(translated_dir, pictures, tmp_path):
    """A function that writes a recipe for an 8 B model, of which there is a config and no weights."""
    config = load_config(translated_dir)
    base = config.base_config
    base.text_config.update(
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "layer_types": ["full_attention"] * 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }
    )
    sizes = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    base.vision_config.update({**sizes, "patch_size": 14})
    base.text_config.tie_word_embeddings = base.tie_word_embeddings = config.tie_word_embeddings = False
    config.save_pretrained(tmp_path / "large")
    processor = load_processor(translated_dir)
    processor.image_processor.patch_size = 14
    processor.save_pretrained(tmp_path / "large")
    record = {"images": [pictures[0]], "messages": [{"role": "user", "content": "<image>is it?"}, ANSWER]}
    (tmp_path / "records.jsonl").write_text("\n".join([json.dumps(record)] * 3000), encoding="utf-8")
    recipe = {
        "model": str(tmp_path / "large"),
        "train_records": [str(tmp_path / "records.jsonl")],
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 1,
        "global_batch_size": 256,
        "num_train_epochs": 2,
        "max_length": 8192,
        "bf16": True,
        "gradient_checkpointing": True,
        "deepspeed": "configs/deepspeed/zero3.json",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(tmp_path / "recipe.yaml")


def test_a_large_model_is_planned_without_its_weights(recipe, tmp_path, capsys):
    assert main([recipe, "--dry_run", "--dry_run_processes", "32"]) == 0
    out = capsys.readouterr().out
    for part in (
        "diffusionvl over qwen2_5_vl, blocks of 8 tokens: 8,292,166,656 parameters in torch.float32",
        "vision_tower: 631,975,680 parameters, 631,975,680 trained",
        "global batch 256 = 1 rows x 32 processes x 8 accumulated",
        "3,000 rows an epoch = 12 steps; 24 steps in all",
        "a GPU with ZeRO-3",
        "optimizer: 2.9 GiB = 12 P_t / 32",
        "for rows of 8,192 clean tokens and as many noisy ones",
    ):
        assert part in out, part
    assert not (tmp_path / "out").exists()


def test_what_is_frozen_is_planned_as_frozen(recipe, capsys):
    assert main([recipe, "--dry_run", "--train_modules", "projector", "language_model"]) == 0
    out = capsys.readouterr().out
    assert "vision_tower: 631,975,680 parameters, 0 trained" in out
    assert "activations, vision tower" not in out


def test_a_teacher_is_held_whole_and_its_logits_count(recipe, translated_dir, base_dir, capsys):
    argv = [recipe, "--dry_run", "--model", translated_dir, "--deepspeed", "", "--bf16", "no"]
    taught = ["--targets", "teacher", "--teacher", base_dir]
    found = []
    for settings in ([], taught):
        assert main([*argv, *settings]) == 0
        found.append(capsys.readouterr().out)
    weights = sum(parameter.numel() for parameter in build_meta_model(load_config(base_dir), "auto").parameters())
    assert f"= 4 x {weights:,} parameters, on each GPU" in found[1]
    assert "on each GPU" not in found[0]
    assert f"loss    block diffusion towards {base_dir}\n" in found[1]
    alone, both = (int(re.search(r"= 12 x ([\d,]+) x V", out)[1]) for out in found)
    assert alone < both <= 2 * alone


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--objective", "ar"], "objective='ar' does not fit"),
        (["--model", "none"], "none: there is no such folder"),
        (["--train_records", "none.jsonl"], "none.jsonl"),
    ],
)
def test_a_run_that_can_not_be_is_not_planned(recipe, capsys, argv, part):
    assert main([recipe, "--dry_run", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err.splitlines()[-1]
