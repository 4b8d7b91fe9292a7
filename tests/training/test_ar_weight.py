"""The weight of the clean stream's next-token loss where no recipe sets it: what it is, and what keeps it."""

import json

import pytest
from helpers import losses, some_records
from trainers import trainer_of

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.train import main
from diffusionvl.training.checks import settle_ar_weight
from diffusionvl.training.run_folder import seal

LOSS = "block diffusion + 1 x next tokens of the clean stream"


@pytest.mark.parametrize(
    ("folder", "settings", "expected"),
    [
        ("causal_dir", {}, 1),
        ("causal_dir", {"ar_weight": 0.0}, 0),
        ("causal_dir", {"ar_weight": 0.25}, 0.25),
        ("causal_dir", {"draft": True}, 0),
        ("translated_dir", {}, 0),
        ("base_dir", {"objective": "ar"}, 0),
    ],
)
def test_it_is_one_where_the_clean_stream_is_an_ar_model(
    request, processor, pictures, tmp_path, folder, settings, expected
):
    trainer = trainer_of(request.getfixturevalue(folder), processor, some_records(pictures), tmp_path, **settings)
    assert trainer.args.ar_weight == expected


def test_an_adapter_for_drafts_leaves_the_clean_stream_alone(causal_dir, processor, pictures, tmp_path):
    args = trainer_of(causal_dir, processor, some_records(pictures), tmp_path).args
    config = Checkpoint(causal_dir).config
    config.draft_adapter = {"rank": 4}
    args.ar_weight = None
    settle_ar_weight(config, args)
    assert args.ar_weight == 0


def test_a_run_prints_it_records_it_and_logs_its_loss(recipe, causal_dir, tmp_path, capsys):
    argv = [recipe, "--model", causal_dir, "--max_steps", "2", "--output_dir", str(tmp_path)]
    assert main([*argv, "--dry_run"]) == 0
    assert f"\nloss    {LOSS}\n" in capsys.readouterr().out
    assert main(argv) == 0
    assert f"diffusionvl train: loss: {LOSS}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "checkpoint-2/training_args.json").read_text())["ar_weight"] == 1
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all("clean_cross_entropy" in line for line in log if "loss" in line)


@pytest.mark.parametrize("recorded", [0.0, None])
def test_a_run_from_before_the_default_keeps_its_loss(recipe, causal_dir, tmp_path, capsys, recorded):
    """Its checkpoints say 0, or nothing at all."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    argv = [recipe, "--model", causal_dir, "--lr_scheduler_type", "constant"]
    assert main([*argv, "--ar_weight", "0", "--max_steps", "4", "--output_dir", str(whole)]) == 0
    assert main([*argv, "--ar_weight", "0", "--max_steps", "2", "--output_dir", str(resumed)]) == 0
    settings = json.loads((resumed / "checkpoint-2/training_args.json").read_text())
    if recorded is None:
        del settings["ar_weight"]
    (resumed / "checkpoint-2/training_args.json").write_text(json.dumps(settings))
    seal(resumed / "checkpoint-2")
    capsys.readouterr()
    assert main([*argv, "--max_steps", "4", "--output_dir", str(resumed)]) == 0
    printed = capsys.readouterr().out
    assert "diffusionvl train: loss: block diffusion\n" in printed
    assert "ar_weight" not in printed
    assert losses(resumed) == losses(whole)
