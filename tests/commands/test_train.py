"""`python -m diffusionvl.train`: from a recipe to a checkpoint, and what stops it is one line with exit code 2."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import processes
import pytest
import torch
import yaml
from helpers import QUESTION, prompts
from training_runs import log_of, record, refused

from diffusionvl import BlockDiffusionConfig, DiffusionVLForConditionalGeneration, load_processor
from diffusionvl.checkpoints.loading import load_model
from diffusionvl.train import main
from diffusionvl.training.model_arguments import DataArguments, ModelArguments


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
