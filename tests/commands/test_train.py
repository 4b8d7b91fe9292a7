"""`python -m diffusionvl.train`: from a recipe to a checkpoint, and what stops it is one line with exit code 2."""

import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import processes
import pytest
import torch
import yaml
from helpers import QUESTION, prompts, write_archive

from diffusionvl import BlockDiffusionConfig, DiffusionVLForConditionalGeneration, load_processor
from diffusionvl.checkpoints.loading import load_model
from diffusionvl.train import main
from diffusionvl.training import run_folder
from diffusionvl.training.model_arguments import DataArguments, ModelArguments


def record(question, answer, *images):
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"images": list(images), "messages": messages}


@pytest.fixture
def recipe(base_dir, translated_dir, pictures, tmp_path):
    """A function that writes a recipe over four records, with settings as keywords, and returns its path."""
    records = [record(QUESTION, answer, pictures[n % 3]) for n, answer in enumerate(("red", "teal", "blue"))]
    lines = [json.dumps(each) for each in [*records, record("is it?", "no")]]
    (tmp_path / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def write(**settings):
        objective = settings.get("objective", "block_diffusion")
        defaults = {
            "model": translated_dir if objective == "block_diffusion" else base_dir,
            "train_records": [str(tmp_path / "records.jsonl")],
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": False,  # what `save_strategy: no` is to a YAML parser
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(defaults | settings), encoding="utf-8")
        return str(tmp_path / "recipe.yaml")

    return write


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def refused(capfd, *argv):
    """The last line on stderr of a run that stops with exit code 2, the only one but for progress bars."""
    capfd.readouterr()
    assert main(list(argv)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert [line for line in lines if "%|" not in line] == lines[-1:]
    assert lines[-1].startswith("diffusionvl train: error: ")
    return lines[-1]


@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_a_run_leaves_a_whole_checkpoint(recipe, objective, pictures, tmp_path):
    assert main([recipe(objective=objective), "--max_steps", "3", "--learning_rate", "1e-3"]) == 0
    out = tmp_path / "out"
    before = load_model(yaml.safe_load((tmp_path / "recipe.yaml").read_text())["model"])
    model, processor = load_model(str(out)), load_processor(str(out))
    assert type(model) is type(before)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert len(moved) > 50
    ends = [torch.tensor(each.generation_config.eos_token_id).flatten().unique() for each in (model, before)]
    assert torch.equal(*ends)  # older Trainers list an id twice
    log = log_of(out)
    assert [line["step"] for line in log] == [1, 2, 3, 3]
    accuracy = "masked_accuracy" if objective == "block_diffusion" else "accuracy"
    assert all({"loss", "learning_rate", "tokens_per_second", accuracy} <= line.keys() for line in log[:3])
    assert "train_runtime" in log[3]
    assert (out / "README.md").is_file() == (objective == "block_diffusion")
    inputs = prompts(processor, (QUESTION, pictures[0]))
    assert model.eval().generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


def test_a_trained_model_goes_on_training(recipe, tmp_path):
    assert main([recipe()]) == 0
    assert main([recipe(model=str(tmp_path / "out"), output_dir=str(tmp_path / "more"))]) == 0
    assert isinstance(load_model(str(tmp_path / "more")), DiffusionVLForConditionalGeneration)


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


def test_evaluation_is_in_the_log(recipe, tmp_path):
    records = str(tmp_path / "records.jsonl")
    assert main([recipe(eval_records=[records], eval_strategy="steps", eval_steps=1)]) == 0
    assert [line["step"] for line in log_of(tmp_path / "out") if "eval_loss" in line] == [1, 2]


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_run_warns_of_nothing(recipe, capfd):
    capfd.readouterr()
    assert main([recipe(dataloader_num_workers=1)]) == 0
    out, err = capfd.readouterr()
    words = [line.split()[3] for line in out.splitlines()]
    assert words == ["records", "of", "steps", "block", "minutes;"]  # its plan, its loss and its end
    assert "loss=" in err
    assert [line for line in err.splitlines() if line.strip() and "%|" not in line] == []  # progress bars only


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"model": "TMP/none"}, "TMP/none: there is no such folder"),
        ({"train_records": ["TMP/none.jsonl"]}, "TMP/none.jsonl"),
        ({"output_dir": "TMP/records.jsonl"}, "TMP/records.jsonl"),
        ({"eval_records": ["TMP/none.jsonl"]}, "TMP/none.jsonl"),
        ({"eval_strategy": "steps"}, "eval_strategy 'steps' needs eval_records"),
        ({"attention": "flex"}, "attention flex trains on a GPU only"),
        ({"complementary": True}, "complementary needs views in pairs"),
        ({"resume_from_checkpoint": "TMP/none"}, "TMP/none"),
        ({"max_length": 3}, "raise max_length"),
    ],
)
def test_an_input_that_can_not_be_used(recipe, tmp_path, capfd, settings, part):
    settings = yaml.safe_load(yaml.safe_dump(settings).replace("TMP", str(tmp_path)))
    assert part.replace("TMP", str(tmp_path)) in refused(capfd, recipe(**settings))


@pytest.mark.parametrize(("objective", "folder"), [("ar", "translated_dir"), ("block_diffusion", "base_dir")])
def test_an_objective_that_does_not_fit(recipe, capfd, objective, folder, request):
    path = recipe(objective=objective, model=request.getfixturevalue(folder))
    assert f"objective={objective!r} does not fit" in refused(capfd, path)


def test_a_broken_line_is_named(recipe, tmp_path, capfd):
    path = recipe()
    with open(tmp_path / "records.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"messages": [\n')
    assert "records.jsonl:5: broken JSON" in refused(capfd, path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_missing_in_the_middle_of_a_run(recipe, tmp_path, capfd, workers):
    path = recipe(per_device_train_batch_size=1, max_steps=4, dataloader_num_workers=workers)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    gone = str(tmp_path / "gone.png")
    (tmp_path / "records.jsonl").write_text("\n".join([*lines[:3], json.dumps(record("is it?", "no", gone))]))
    message = refused(capfd, path)
    assert "records.jsonl:4" in message
    assert gone in message
    assert "Traceback" not in message


def test_a_process_that_loads_data_does_not_outlive_an_error(recipe, tmp_path):
    path = recipe(per_device_train_batch_size=1, max_steps=4, dataloader_num_workers=1)
    broken = json.dumps(record("is it?", "no", str(tmp_path / "gone.png")))
    (tmp_path / "records.jsonl").write_text(f"{broken}\n{broken}\n{broken}\n")
    assert processes.wait(processes.start(processes.train, [path]), timeout=120) == [2]


def test_a_run_over_packed_rows(recipe, tmp_path, capfd):
    path = recipe(packing=True, pack_tokens=70, pack_images=2, max_steps=-1, num_train_epochs=3)
    capfd.readouterr()
    assert main([path]) == 0
    assert "stand alone" not in capfd.readouterr().out
    steps = [line for line in log_of(tmp_path / "out") if "loss" in line]
    assert len(steps) == 3  # two rows of two records each
    assert main([recipe(packing=True, pack_tokens=30, output_dir=str(tmp_path / "more"))]) == 0
    assert "3 of 4 records are longer than pack_tokens=30 and stand alone" in capfd.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("packing", [False, True])
def test_bad_samples_may_be_left_out_and_counted(recipe, tmp_path, capfd, packing, workers):
    path = recipe(
        per_device_train_batch_size=1 if not packing else 4,
        num_train_epochs=1,
        max_steps=-1,
        dataloader_num_workers=workers,
        packing=packing,
        pack_tokens=60,
    )
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    gone = str(tmp_path / "gone.png")
    lines += ['{"messages": [', json.dumps(record("is it?", "no", gone))]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    assert "records.jsonl:5: broken JSON" in refused(capfd, path)
    assert main([path, "--max_bad_samples", "1"]) == 2
    assert "max_bad_samples=1" in capfd.readouterr().err
    assert main([path, "--max_bad_samples", "2"]) == 0
    err = capfd.readouterr().err
    assert "records.jsonl:5: broken JSON" in err
    assert gone in err
    assert log_of(tmp_path / "out")[-1]["bad_samples"] == 2
    # A second epoch meets the same records, which count once.
    assert main([path, "--max_bad_samples", "2", "--num_train_epochs", "2", "--overwrite", "yes"]) == 0


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


def test_help_takes_no_time_and_names_settings_that_exist(capsys):
    code = "import sys; from diffusionvl.train import main; main(['--help']); assert 'torch' not in sys.modules"
    page = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"--(\w+)", page)) - {"key", "help", "debug", "model_name_or_path"}
    known = {field.name for kind in (ModelArguments, DataArguments, BlockDiffusionConfig) for field in fields(kind)}
    assert names <= known
    assert len(names) > 15


def test_debug_shows_the_traceback_or_is_transformers_own(recipe, tmp_path, capfd):
    assert main([recipe(train_records=[str(tmp_path / "none.jsonl")]), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err
    assert main([recipe(), "--debug", "underflow_overflow", "--dry_run"]) == 0


def test_a_run_writes_its_losses_and_their_chart(recipe, tmp_path):
    assert main([recipe()]) == 0
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out/.unfinished").exists()


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


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not used here"),
        ({"include_for_metrics": ["inputs"]}, "include_for_metrics=['inputs'] is not used here"),
        ({"optim_args": "zz"}, "optim_args must read name=value"),
        ({"report_to": "tensorboard", "dry_run": True}, "report_to 'tensorboard' needs its package"),
        ({"report_to": "wandb", "dry_run": True}, "report_to 'wandb' needs a login"),
    ],
)
def test_settings_that_would_do_nothing_are_refused_by_name(recipe, capfd, monkeypatch, settings, part):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(SystemExit) as exit_:
        main([recipe(**settings)])
    assert exit_.value.code == 2
    assert part in capfd.readouterr().err


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
