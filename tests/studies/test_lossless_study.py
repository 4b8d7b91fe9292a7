"""The study of lossless decoding, on random models: what it measures, writes and refuses."""

import json
import shutil

import pytest
from helpers import prompts

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.cli import main as cli
from studies.lossless import measure


@pytest.fixture(scope="module")
def draft_dir(base_dir, tmp_path_factory):
    """A causal translation of the base, whose clean stream is the base's own."""
    folder = str(tmp_path_factory.mktemp("draft") / "model")
    assert cli(["translate", base_dir, "--out", folder, "--block-size", "4", "--clean-attention", "causal"]) == 0
    return folder


@pytest.fixture
def study(base_dir, draft_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.quickstart.contest.MAX_NEW_TOKENS", 12)
    flags = ["--out", str(tmp_path), "--questions", "3", "--draft-sizes", "2", "4", "--device", "cpu"]
    return [base_dir, draft_dir, *flags]


def test_every_way_writes_the_bases_answers(study, tmp_path, capsys):
    assert measure.main([*study, "--batches", "1", "3"]) == 0
    found = json.loads((tmp_path / "lossless.json").read_text())
    ways = ["generate", "autoregressive", "speculative, 2", "speculative, 4"]
    assert [(row["batch"], row["name"]) for row in found["rows"]] == [
        *((1, name) for name in ways),
        *((3, name) for name in ways),
    ]
    rows = {(row["batch"], row["name"]): row for row in found["rows"]}
    assert all(row["equal"] == 1 for row in rows.values())
    assert all(row["forwards"] <= row["tokens"] for row in rows.values())
    assert rows[1, "autoregressive"]["forwards"] == rows[1, "autoregressive"]["tokens"]
    assert (tmp_path / "lossless.md").read_text() in capsys.readouterr().out


def test_a_stage_that_is_there_is_not_measured_again(study, tmp_path, monkeypatch):
    assert measure.main([*study, "--batches", "1"]) == 0
    first = json.loads((tmp_path / "lossless.json").read_text())["rows"]
    stages = []
    real = measure.stage
    monkeypatch.setattr(measure, "stage", lambda *args: stages.append(args[3]) or real(*args))
    assert measure.main([*study, "--batches", "1", "2"]) == 0
    assert stages == [2]
    assert json.loads((tmp_path / "lossless.json").read_text())["rows"][: len(first)] == first


def test_figures_of_something_else_are_kept(study, tmp_path, capsys):
    assert measure.main([*study, "--batches", "1"]) == 0
    assert measure.main([*study, "--batches", "1", "--dtype", "bfloat16"]) == 2
    assert "holds figures of something else" in capsys.readouterr().err


def test_models_in_the_wrong_order_are_refused(study, capsys, tmp_path):
    base, draft, *flags = study
    assert measure.main([draft, base, *flags]) == 2
    assert "give an AR model, then its drafts" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
    assert measure.main([base, draft, *flags, "--batches", "0"]) == 2


def test_forwards_of_prompt_lookup_are_counted(base_dir, processor):
    model = Checkpoint(base_dir).model().eval()
    inputs = prompts(processor, ("why? because it is so. why? because it is",))
    settings = {"max_new_tokens": 12, "prompt_lookup_num_tokens": 3}
    generated = measure.PromptLookup("lookup", model, settings).answer(inputs)
    assert 0 < int(generated.forwards[0]) <= int(generated.lengths[0]) == 12
