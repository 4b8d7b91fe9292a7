"""The quickstart's last step, on random models: it writes what it says, and refuses what it cannot compare."""

import json
import shutil

import pytest
from helpers import load_model

from diffusionvl.commands import draft
from diffusionvl.commands.draft import build_parser
from studies.quickstart.comparison import main


@pytest.fixture(scope="module")
def trained_dir(translated_dir, tmp_path_factory):
    """A folder as `diffusionvl.train` leaves it: with a log."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(translated_dir, folder)
    lines = [{"step": 1, "loss": 2.0, "masked_accuracy": 0.1}, {"step": 2, "loss": 1.0, "masked_accuracy": 0.2}]
    lines.append({"step": 2, "train_runtime": 3.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_writes_report_film_and_numbers(base_dir, trained_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("studies.quickstart.contest.MAX_NEW_TOKENS", 16)
    out = tmp_path / "out"
    argv = [base_dir, trained_dir, "--out", str(out), "--limit", "4", "--sweep", "0.95", "0.5"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("AR", "static", "dynamic", "4 short and 4 long"))
    assert {path.name for path in out.iterdir()} == {"report.html", "results.json", "film.gif"}
    results = json.loads((out / "results.json").read_text())
    assert results["questions"] == {"short": 4, "long": 4}
    assert results["steps"] == 2
    assert results["train_seconds"] == 3.5
    assert list(results["decoding"]) == ["AR", "static", "dynamic"]
    assert results["decoding"]["AR"]["long_forwards_per_token"] == 1
    assert [point["threshold"] for point in results["sweep"]] == [0.5, 0.9, 0.95]
    assert results["block_size"] == load_model(trained_dir).config.block_size


def test_drafts_for_the_base_are_a_row_of_their_own(base_dir, trained_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("studies.quickstart.contest.MAX_NEW_TOKENS", 8)
    start = tmp_path / "start"
    arguments = build_parser().parse_args([base_dir, "--records", "none", "--out", str(tmp_path)])
    draft.start(arguments, start)
    out = tmp_path / "out"
    argv = [base_dir, trained_dir, "--drafts", str(start), "--out", str(out), "--limit", "3", "--sweep", "0.5"]
    assert main(argv) == 0, capsys.readouterr().err
    decoding = json.loads((out / "results.json").read_text())["decoding"]
    assert list(decoding) == ["AR", "static", "dynamic", "lossless"]
    assert decoding["lossless"]["long_equal_to_ar"] == 1
    assert decoding["lossless"]["long_exact_match"] == decoding["AR"]["long_exact_match"]
    assert "Lossless is the base itself" in (out / "report.html").read_text()


def test_refuses_models_in_the_wrong_order(base_dir, trained_dir, tmp_path, capsys):
    assert main([trained_dir, base_dir, "--out", str(tmp_path)]) == 2
    assert "in this order" in capsys.readouterr().err


def test_refuses_a_translation_without_a_log(base_dir, translated_dir, tmp_path, capsys):
    assert main([base_dir, translated_dir, "--out", str(tmp_path)]) == 2
    assert "log.jsonl is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batch-size", "0"], "--batch-size"),
        (["--limit", "-1"], "--limit"),
        (["--sweep", "0.5", "2"], "confidence_threshold"),
        (["--confidence-threshold", "nan"], "confidence_threshold"),
    ],
)
def test_bad_values_are_reported_before_anything_is_loaded(base_dir, tmp_path, capsys, argv, said):
    assert main([base_dir, "no such folder", "--out", str(tmp_path / "out"), *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1]", "{broken", '{"step": 1, "loss": 1.0}'])
def test_a_log_that_is_not_whole_is_refused(base_dir, translated_dir, tmp_path, capsys, text):
    shutil.copytree(translated_dir, tmp_path / "model")
    (tmp_path / "model/log.jsonl").write_text(text)
    assert main([base_dir, str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert "not the log of a whole training run" in capsys.readouterr().err
