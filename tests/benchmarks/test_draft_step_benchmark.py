"""The benchmark of a decoding step with masks: every size is measured with the adapter and without it."""

import json

import pytest

from benchmarks.draft_step import Step, main, table
from diffusionvl.checkpoints.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def drafted(translated_dir, tmp_path):
    """The folder of a model with a draft-only adapter that changes nothing."""
    checkpoint = Checkpoint(translated_dir)
    config = checkpoint.config
    config.clean_attention = "causal"
    config.draft_adapter = {"rank": 2, "alpha": 4, "base": None, "fingerprint": None}
    save_checkpoint(type(checkpoint.model())(config), checkpoint.processor, str(tmp_path / "drafted"))
    return str(tmp_path / "drafted")


def test_every_size_is_measured_with_the_adapter_and_without_it(drafted, tmp_path, capsys):
    file = tmp_path / "steps.json"
    sizes = ("--rows", "1", "2", "--pending", "2", "--masks", "3", "--prompt-tokens", "8")
    assert main([drafted, *sizes, "--dtypes", "float32", "--repeats", "1", "--json", str(file)]) == 0
    steps = json.loads(file.read_text())["steps"]
    found = [(step["rows"], step["pending"], step["masks"]) for step in steps]
    assert found == [(rows, pending, masks) for rows in (1, 2) for pending in (1, 2) for masks in (0, 3)]
    assert all(0 < step[name] < 60 for step in steps for name in ("plain", "adapted"))
    assert len(capsys.readouterr().out.splitlines()) == 2 + 8


def test_costs_are_compared_with_one_token_and_with_no_masks():
    steps = [Step("float32", 1, 1, 0, 1.0, 1.0), Step("float32", 1, 4, 0, 2.0, 2.0), Step("float32", 1, 4, 2, 2.5, 3.0)]
    line = table(steps).splitlines()[-1]
    assert line == "| float32 | 1 | 4 | 2 | 3000.00 | 2500.00 | 3.00x | 500.00 | +50 % |"


def test_a_model_without_an_adapter_is_refused(translated_dir, capsys):
    assert main([str(translated_dir)]) == 2
    assert "has no draft-only adapter; give a folder of `diffusionvl draft`" in capsys.readouterr().err
