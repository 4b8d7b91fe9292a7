"""`python -m diffusionvl.train` again: a run goes on where it stopped, and loses neither itself nor another one."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import write_archive
from training_runs import log_of, refused

from diffusionvl.checkpoints.loading import load_model
from diffusionvl.train import main
from diffusionvl.training import run_folder


def into_archives(folder):
    """Writes the four records of a recipe into two WebDataset shards."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    for shard in range(2):
        files = []
        for key, line in enumerate(lines[2 * shard : 2 * shard + 2]):
            raw = json.loads(line)
            files += [(f"{key}.{place}.png", Path(path).read_bytes()) for place, path in enumerate(raw["images"])]
            files.append((f"{key}.json", raw))
        write_archive(folder / f"{shard}.tar", files)
    return {"train_records": [str(folder / "*.tar")], "per_device_train_batch_size": 1}


@pytest.mark.parametrize("kind", ["rows", "packs", "archives"])
def test_resume_last_goes_on_where_the_run_stopped(recipe, tmp_path, kind):
    """Archives: in the middle of an epoch of four steps."""
    packs = {"packing": True, "pack_tokens": 60, "noisy_views": 2, "complementary": True}
    kinds = {"rows": {}, "packs": packs, "archives": into_archives(tmp_path)}
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "constant", **kinds[kind]}
    assert main([recipe(**saving, output_dir=str(tmp_path / "whole"))]) == 0
    path = recipe(**saving, resume_from_checkpoint="last")
    assert main([path, "--max_steps", "2"]) == 0  # there is none yet: `last` begins
    assert main([path]) == 0
    whole, resumed = log_of(tmp_path / "whole"), log_of(tmp_path / "out")
    assert [line["loss"] for line in resumed if "loss" in line] == [line["loss"] for line in whole if "loss" in line]
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    expected = load_model(str(tmp_path / "whole")).state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in load_model(str(tmp_path / "out")).state_dict().items()
    )


def test_checkpoints_of_another_run_are_not_mixed_with_new_ones(recipe, capfd):
    path = recipe(save_strategy="steps", save_steps=2)
    assert main([path]) == 0
    message = refused(capfd, path)
    assert "already holds checkpoint-2" in message
    assert "--resume_from_checkpoint last" in message
    assert main([path, "--resume_from_checkpoint", "last", "--max_steps", "3"]) == 0


def run_to(recipe, steps, **settings):
    """A run that saves every step, or goes on with one."""
    settings = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant", **settings}
    return main([recipe(max_steps=steps, **settings)])


def test_no_pickle_stands_beside_the_weights(recipe, tmp_path):
    assert run_to(recipe, 1) == 0
    for folder in (tmp_path / "out", tmp_path / "out/checkpoint-1"):
        assert not [*folder.glob("*.bin")]
        assert json.loads((folder / "training_args.json").read_text())["max_steps"] == 1


def test_a_finished_run_is_left_alone(recipe, tmp_path, capfd):
    assert run_to(recipe, 2) == 0
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    assert run_to(recipe, 2, resume_from_checkpoint="last") == 0
    assert "nothing is left to do" in capfd.readouterr().out
    assert (tmp_path / "out/model.safetensors").read_bytes() == weights
    assert run_to(recipe, 3, resume_from_checkpoint="last") == 0
    assert (tmp_path / "out/checkpoint-3").is_dir()


@pytest.mark.parametrize("damage", ["no state", "half a state", "no weights"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(recipe, tmp_path, capfd, damage):
    assert run_to(recipe, 2) == 0
    newest = tmp_path / "out/checkpoint-2"
    state = newest / "trainer_state.json"
    if damage == "no state":
        state.unlink()
    elif damage == "half a state":
        state.write_text(state.read_text()[:50])
    else:
        (newest / "model.safetensors").unlink()
    expected = load_model(str(tmp_path / "out")).state_dict()
    capfd.readouterr()
    assert run_to(recipe, 2, resume_from_checkpoint="last") == 0
    assert f"{newest} is damaged" in capfd.readouterr().err
    for name, weight in load_model(str(tmp_path / "out")).state_dict().items():
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"learning_rate": 1e-5}, "learning_rate is 1e-05, but 5e-05 in"),
        ({"seed": 7}, "seed is 7, but 42 in"),
        ({"per_device_train_batch_size": 1}, "rows_of_a_step is 1, but 2 in"),
        ({"noisy_views": 2}, "noisy_views is 2, but 1 in"),
    ],
)
def test_settings_that_a_checkpoint_fixes_cannot_change(recipe, capfd, settings, part):
    assert run_to(recipe, 2) == 0
    assert part in refused(capfd, recipe(max_steps=3, resume_from_checkpoint="last", **settings))


def test_other_data_is_refused_and_moved_data_is_not(recipe, tmp_path, capfd):
    assert run_to(recipe, 2) == 0
    records = tmp_path / "records.jsonl"
    moved = tmp_path / "moved.jsonl"
    moved.write_text(records.read_text())
    settings = {"resume_from_checkpoint": "last", "save_strategy": "steps", "save_steps": 1}
    assert main([recipe(max_steps=3, train_records=[str(moved)], **settings)]) == 0
    moved.write_text(records.read_text().replace("teal", "pink"))
    assert "data_fingerprint" in refused(capfd, recipe(max_steps=4, train_records=[str(moved)], **settings))


def test_a_setting_that_may_change_is_reported_and_recorded(recipe, tmp_path, capfd):
    assert run_to(recipe, 2) == 0
    capfd.readouterr()
    assert run_to(recipe, 3, resume_from_checkpoint="last", max_grad_norm=0.5) == 0
    assert "max_grad_norm: 1.0 -> 0.5" in capfd.readouterr().out
    assert json.loads((tmp_path / "out/checkpoint-3/training_args.json").read_text())["max_grad_norm"] == 0.5


def test_a_full_disk_is_one_line_and_loses_nothing(recipe, tmp_path, capfd, monkeypatch):
    assert run_to(recipe, 2) == 0

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.Trainer._save_rng_state", full)
    monkeypatch.setattr(run_folder, "full_disk", lambda folder: "No space left on device")
    message = refused(capfd, recipe(max_steps=3, resume_from_checkpoint="last", save_strategy="steps", save_steps=1))
    assert "could not be written (No space left on device); earlier ones are whole" in message
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("wrong", [{"targets": "teacher", "teacher": "none"}, {"train_records": ["none.jsonl"]}])
def test_a_mistake_replaces_no_checkpoints(recipe, tmp_path, capfd, wrong):
    assert run_to(recipe, 2) == 0
    assert "none" in refused(capfd, recipe(overwrite=True, **wrong))
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert main([recipe(overwrite=True)]) == 0
    assert not [*(tmp_path / "out").glob("checkpoint-*")]


def test_a_run_replaces_only_what_it_is_told_to(recipe, tmp_path, translated_dir, capfd):
    """Neither another program's model nor a finished run without checkpoints."""
    shutil.copytree(translated_dir, tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    assert "which `diffusionvl train` did not write" in refused(capfd, recipe())
    assert "which `diffusionvl train` did not write" in refused(capfd, recipe(dry_run=True))
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert main([recipe(overwrite=True)]) == 0
    trained = (tmp_path / "out/model.safetensors").read_bytes()
    assert trained != before
    assert "holds the model of a finished run" in refused(capfd, recipe(learning_rate=1e-2))
    assert (tmp_path / "out/model.safetensors").read_bytes() == trained
    assert main([recipe(learning_rate=1e-2, overwrite=True)]) == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() != trained
