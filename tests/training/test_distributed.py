"""Two processes over gloo train as one does, under every engine that runs on CPUs."""

import json
import signal
from pathlib import Path

import processes
import pytest
import torch
import yaml
from helpers import losses
from safetensors.torch import load_file

from diffusionvl import DiffusionVLForConditionalGeneration
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.training.run_folder import newest_checkpoint
from diffusionvl.translation.translate import translate


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """The folder of one process that accumulates two batches a step."""
    return run(recipe, tmp_path_factory.mktemp("alone"), "ddp", world_size=1)


ENGINES = {
    "ddp": [],
    "zero2": ["--deepspeed", "configs/deepspeed/zero2.json"],
    "zero3": ["--deepspeed", "configs/deepspeed/zero3.json"],
    "zero3_offload": ["--deepspeed", "configs/deepspeed/zero3_offload.json"],  # compiles its optimizer, once
    "fsdp2": ["--fsdp_config", "configs/fsdp/fsdp2.json"],
}
STEP = "global_step7"
SHARDS = {"zero2": STEP, "zero3": STEP, "zero3_offload": STEP, "fsdp2": "pytorch_model_fsdp.bin"}


def arguments(recipe, out, engine):
    """Four rows a step, over however many processes."""
    argv = [recipe, "--output_dir", str(out), "--global_batch_size", "4"]
    return argv + ENGINES[engine]


def run(recipe, out, engine, world_size=2, expected=0, more=(), **signals):
    """Trains, and returns the folder."""
    argv = [*arguments(recipe, out, engine), *more]
    codes = processes.run(processes.train, argv, world_size=world_size, **signals)
    assert codes == [expected] * world_size
    return out


def assert_close(found, expected, tolerance):
    """The same losses and weights, and the same names in the files."""
    assert losses(found) == pytest.approx(losses(expected), rel=tolerance)
    weights = load_file(expected / "model.safetensors")
    values = load_file(found / "model.safetensors")
    assert values.keys() == weights.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=tolerance)


def test_two_processes_train_as_one(recipe, alone, tmp_path):
    run(recipe, tmp_path / "whole", "ddp")
    assert_close(tmp_path / "whole", alone, 1e-4)
    assert_loads(tmp_path / "whole/checkpoint-4")
    # Killed in the middle of the second checkpoint, in the second epoch.
    run(recipe, tmp_path / "out", "ddp", kill=("_save_rng_state", 4), expected=-signal.SIGKILL)
    assert newest_checkpoint(str(tmp_path / "out")) == str(tmp_path / "out/checkpoint-2")
    run(recipe, tmp_path / "out", "ddp")
    assert_close(tmp_path / "out", tmp_path / "whole", 1e-6)


def test_a_run_goes_on_with_another_number_of_processes(recipe, alone, tmp_path):
    run(recipe, tmp_path, "ddp", world_size=1, kill=("on_step_end", 5), expected=-signal.SIGKILL)
    run(recipe, tmp_path, "ddp", world_size=2)
    assert_close(tmp_path, alone, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", SHARDS)
def test_an_engine_trains_and_resumes_as_one_process(recipe, alone, tmp_path, engine):
    run(recipe, tmp_path / "whole", engine, more=["--sample_steps", "3", "--sample_count", "1"])
    assert (tmp_path / "whole/samples/step-000006.jsonl").exists()
    assert (tmp_path / "whole/checkpoint-7" / SHARDS[engine]).exists()
    assert_close(tmp_path / "whole", alone, 1e-4)
    assert_loads(tmp_path / "whole")
    assert_loads(tmp_path / "whole/checkpoint-7")
    run(recipe, tmp_path / "out", engine, kill=("_save_rng_state", 4), expected=-signal.SIGKILL)
    run(recipe, tmp_path / "out", engine)
    assert_close(tmp_path / "out", tmp_path / "whole", 1e-5 if engine == "zero3_offload" else 1e-6)


def assert_loads(folder):
    """As any checkpoint."""
    _, info = DiffusionVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


@pytest.fixture(scope="module")
def mixed(recipe, tmp_path_factory):
    """A recipe in which one process gets the pictures and the other, in every step, none."""
    folder = tmp_path_factory.mktemp("mixed")
    settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    lines = Path(settings["train_records"][0]).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[:2]]
    text = {**records[0], "images": [], "messages": [{"role": "user", "content": "is it?"}, records[0]["messages"][1]]}
    records = [records[0], text, records[1], text]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    own = {"train_records": [str(folder / "records.jsonl")], "per_device_train_batch_size": 1, "max_steps": 3}
    settings |= {**own, "train_sampling_strategy": "sequential", "gradient_checkpointing": True, "save_strategy": False}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(folder / "recipe.yaml")


@pytest.mark.parametrize("engine", ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in SHARDS)])
def test_a_text_beside_a_picture_does_not_hang(mixed, tmp_path, engine):
    for name, world_size in (("together", 2), ("alone", 1)):
        argv = [mixed, "--output_dir", str(tmp_path / name), "--global_batch_size", "2"]
        argv += ENGINES[engine] if world_size == 2 else []
        assert processes.run(processes.train, argv, world_size=world_size) == [0] * world_size
    assert losses(tmp_path / "together") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


@pytest.mark.slow
def test_an_adapter_trains_under_zero2_as_in_one_process(recipe, tmp_path):
    for name, engine, world_size in (("alone", "ddp", 1), ("zero2", "zero2", 2)):
        argv = [*arguments(recipe, tmp_path / name, engine), "--lora_r", "4"]
        assert processes.run(processes.train, argv, world_size=world_size) == [0] * world_size
    assert losses(tmp_path / "zero2") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    expected = load_file(tmp_path / "alone/adapter_model.safetensors")
    found = load_file(tmp_path / "zero2/adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_one_process_that_is_told_stops_all(recipe, alone, tmp_path):
    run(recipe, tmp_path, "ddp", term=("on_step_begin", 2), expected=143)
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-3")
    run(recipe, tmp_path, "ddp")
    assert_close(tmp_path, alone, 1e-4)


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_draft_only_adapter_is_trained_by_two_processes(recipe, base_dir, tmp_path, engine):
    """As by one, in bf16, too; the base is not in what is saved."""
    causal = str(tmp_path / "causal")
    save_checkpoint(*translate(base_dir, block_size=4, clean_attention="causal"), causal)
    more = [
        "--model",
        causal,
        "--lora_r",
        "4",
        "--lora_on",
        "noisy",
        "--draft",
        "yes",
        "--gradient_checkpointing",
        "yes",
    ]
    alone = run(recipe, tmp_path / "alone", "ddp", world_size=1, more=more)
    assert_close(run(recipe, tmp_path / "two", engine, more=more), alone, 1e-4)
    assert all(name.startswith("draft.") for name in load_file(alone / "model.safetensors"))
    run(recipe, tmp_path / "half", engine, more=[*more, "--bf16", "yes", "--dtype", "bfloat16"])
    assert losses(tmp_path / "half")[0] == pytest.approx(losses(alone)[0], rel=0.05)
