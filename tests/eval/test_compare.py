"""Measured beside published numbers, and the speed table, on runs that are made up."""

import json

import pytest
from finished_runs import finished_run
from PIL import Image

from eval import compare, report, speed
from eval.results import read_runs


def test_measured_beside_expected(tmp_path, capsys):
    finished_run(
        tmp_path, "mine", "tables-1-2", "chartqa", metrics={"relaxed_overall": 0.8}, errors={"relaxed_overall": 0.01}
    )
    assert compare.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].split()[2:] == [
        "chartqa",
        "ChartQA",
        "80.00",
        "±",
        "1.00",
        "84.20",
        "-4.20",
        "DiffusionVL-7B",
    ]
    assert "expected: arXiv 2512.15713v3, tables 1 and 2" in printed
    (row,) = json.loads((tmp_path / "compare.json").read_text())
    assert (row["measured"], row["error"], row["expected"]) == (80.0, 1.0, 84.2)
    assert row["against"] == "DiffusionVL-7B"
    assert row["difference"] == pytest.approx(-4.2)
    with Image.open(tmp_path / "compare.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_whose_figures(tmp_path):
    metrics = {"mme_perception_score": 1500.0, "mme_cognition_score": 600.0}
    finished_run(tmp_path, "ar", "tables-1-2", "mme", metrics=metrics)
    finished_run(tmp_path, "small", "tables-1-2", "mme", metrics=metrics, against="DiffusionVL-3B")
    finished_run(tmp_path, "large", "tables-1-2", "mme", metrics=metrics)
    records = read_runs([tmp_path])
    found = {(row.model, row.metric): (row.against, row.expected) for row in compare.compare(records)}
    assert found["ar", "MME-p"] == ("Qwen2.5-VL-7B", 1680)
    assert found["small", "MME-c"] == ("DiffusionVL-3B", 594)
    assert found["large", "MME-p"] == ("DiffusionVL-7B", 1519)
    assert {row.against for row in compare.compare(records, "LLaDA-V-8B")} == {"LLaDA-V-8B"}
    with pytest.raises(
        ValueError, match=r"--against 'me': nothing was published for it here; the models are \['DiffusionVL"
    ):
        compare.compare(records, "me")


def test_figures_of_another_block_size_or_threshold_are_not_compared(tmp_path):
    metrics = {"relaxed_overall": 0.8}
    for size in (4, 16, 32):
        finished_run(tmp_path, f"d{size}", "table-5", "chartqa", metrics=metrics, settings={"block_size": size})
    settings = {"block_size": 8, "confidence_threshold": 0.6}
    speeds = {"paper_tokens_per_second": 40.0}
    finished_run(tmp_path, "d8", "table-7", "detailcaps_captions", "dynamic-0.6", settings=settings, metrics=speeds)
    found = {(row.model, row.metric): row.expected for row in compare.compare(read_runs([tmp_path]))}
    assert found == {
        ("d4", "ChartQA"): 80.9,
        ("d16", "ChartQA"): 77.4,
        ("d32", "exact_match"): None,  # nothing is published about it
        ("d8", "TPS"): 37.8,
        ("d8", "BERTScore"): 29.7,
    }


def test_what_is_published_and_not_measured_is_listed(tmp_path, capsys):
    settings = {"block_size": 8, "confidence_threshold": 0.6}
    finished_run(tmp_path, "mine", "table-7", "detailcaps_captions", "dynamic-0.6", settings=settings)
    assert compare.main([str(tmp_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "BERTScore" in line)
    assert row.split()[-5:] == ["BERTScore", "-", "29.70", "-", "DiffusionVL-7B"]
    rows = {row["metric"]: row for row in json.loads((tmp_path / "compare.json").read_text())}
    assert rows["BERTScore"]["measured"] is rows["BERTScore"]["difference"] is None
    assert rows["TPS"]["measured"] == 50


def test_runs_of_the_same_names_are_not_taken_for_one(tmp_path, capsys):
    for out in ("a", "b"):
        finished_run(tmp_path / out, "mine")
    assert len(read_runs([tmp_path / "a", tmp_path / "a" / "mine"])) == 1  # the same folder twice
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "are both easy_vqa_long of 'mine'; give one of them" in capsys.readouterr().err


def test_nothing_to_compare(tmp_path, capsys):
    assert compare.main([str(tmp_path / "no")]) == 2
    assert compare.main([str(tmp_path)]) == 2
    assert "holds no finished run; give a folder that eval/run.sh wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: "{", "run.json is broken"),
        (lambda run: "[]", "run.json is broken"),
        (lambda run: '"x"', "run.json is broken"),
        (lambda run: '{"model": "m"}', "missing"),
        (lambda run: {**run, "metrics": {}}, "metrics has no number 'tokens_per_second'"),
        (lambda run: {**run, "metrics": {**run["metrics"], "exact_match": "high"}}, "no number 'exact_match'"),
        (lambda run: {**run, "metrics": 3}, "metrics is 3"),
        (lambda run: {**run, "higher_is_better": {}}, "higher_is_better names no metric"),
        (lambda run: {**run, "setup": {}}, "setup has no 'hardware'"),
        (lambda run: {**run, "asked": {"model": "m"}}, "asked has no 'limit'"),
        (lambda run: {**run, "frog": 1}, "frog"),
        (lambda run: {**run, "samples": None}, "samples is None"),
    ],
)
@pytest.mark.parametrize("command", [compare, report])
def test_a_thin_or_broken_run_is_one_line(change, said, command, tmp_path, capsys):
    path = finished_run(tmp_path).folder / "run.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert command.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "run.json is broken" in err
    assert said in err


def test_numbers_have_one_scale(tmp_path):
    """A share without a published number is in per cent, too; a score that is not a share stays as it is."""
    finished_run(tmp_path, "mine", metrics={"exact_match": 0.0}, errors={"exact_match": 0.0})
    metrics = {"score": 1500.25}
    finished_run(tmp_path, "mine", task="other", metrics=metrics, higher_is_better={"score": True})
    rows = compare.table_rows(compare.compare(read_runs([tmp_path])))
    assert [row[4:7] for row in rows] == [["0.00 ± 0.00", "-", "-"], ["1500.25", "-", "-"]]


@pytest.fixture
def runs(tmp_path):
    """Speeds of three models at one and at two tokens a step."""
    finished_run(tmp_path, "ar", variant="ar", metrics={"tokens_per_second": 50.0})
    for variant, fast, slow in (("static-1.0", 60.0, 20.0), ("static-2.0", 120.0, 40.0)):
        finished_run(tmp_path, variant=variant, metrics={"tokens_per_second": fast})
        settings = {"max_new_tokens": 96, "block_size": 96}
        finished_run(
            tmp_path, "full-diffusion", variant=variant, metrics={"tokens_per_second": slow}, settings=settings
        )
    return tmp_path


def test_speed_table(runs, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(speed.running, "main", lambda flags: ran.append(flags) or 0)
    argv = ["M", "--ar", "A", "--full-diffusion", "F", "--out", str(runs), "--limit", "9"]
    assert speed.main(argv) == 0
    assert [flags[1] for flags in ran] == ["A", "M", "F"]
    assert all(flags[0] == "local-speed" and flags[-2:] == ["--limit", "9"] for flags in ran)
    rows = {(row["model"], row["decoding"]): row for row in json.loads((runs / "speed.json").read_text())}
    assert rows["block-diffusion", "static-2.0"]["times_ar"] == 2.4
    assert rows["block-diffusion", "static-2.0"]["times_full_diffusion"] == 3
    assert rows["block-diffusion", "static-1.0"]["times_full_diffusion"] == 3
    assert rows["ar", "ar"]["times_full_diffusion"] is None
    assert "2.40x" in capsys.readouterr().out
    monkeypatch.setattr(speed.running, "main", lambda flags: 1)
    assert speed.main(argv) == 1


def test_models_that_cannot_play_their_part(runs, monkeypatch, capsys):
    monkeypatch.setattr(speed.running, "main", lambda flags: 0)
    finished_run(runs, "full-diffusion", variant="static-4.0")
    assert speed.main(["M", "--ar", "A", "--out", str(runs)]) == 2
    assert "blocks of 8 tokens and writes up to 96: this is not full diffusion" in capsys.readouterr().err
    finished_run(runs, "ar", variant="ar2", kind="block_diffusion")
    assert speed.main(["M", "--ar", "A", "--out", str(runs)]) == 2
    assert "of kind block_diffusion; it cannot be the ar model" in capsys.readouterr().err
