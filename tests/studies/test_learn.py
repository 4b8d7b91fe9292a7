"""The study of training's switches: its runs resume, its budgets are equal, and its figures are what they say."""

import json
from pathlib import Path

import pytest

from diffusionvl.modeling.errors import UserError
from studies.learn import __main__ as study
from studies.learn import curve, easy, eyes, text
from studies.learn.figures import Estimate, decoded, differences, main, read_runs, table
from studies.learn.variants import BASELINE, EASY, TABLES, TEXT, file_name

ASKED = ["--part", "a", "--budget", "smoke", "--variants", BASELINE, "causal, AR 1, own states"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of two runs of two steps."""
    out = tmp_path_factory.mktemp("learn")
    assert study.main([*ASKED, "--out", str(out)]) == 0
    return out


def test_a_run_writes_its_curve(made):
    runs = read_runs(made)
    assert runs.keys() == {BASELINE, "causal, AR 1, own states"}
    for variant, own in runs.items():
        first, last = own[0]["curve"]
        assert (first["step"], last["step"]) == (1, 2)
        assert first.keys() == {"step", "denoise"}
        assert ("speculative" in last) == (variant != BASELINE)
        assert last["denoise"].keys() == {"short", "long", "forwards_per_token"}
    assert json.loads((made / "base.json").read_text())["short"] == 1.0


def test_what_is_there_is_not_made_again(made, monkeypatch, capsys):
    def fail(*args):
        raise AssertionError("this run is there")

    monkeypatch.setattr(easy, "learn", fail)
    assert study.main([*ASKED, "--out", str(made)]) == 0
    assert study.main(["--part", "a", "--out", str(made)]) == 2
    assert "holds runs of another part or budget" in capsys.readouterr().err


def test_a_variant_has_the_ar_loss_and_the_teacher_that_it_names_and_no_other(monkeypatch):
    """Whatever the default is, and whatever the recipe says: so its runs stay what they were."""

    class Stopped(Exception):
        pass

    def build(model, data, args):
        raise Stopped(args.ar_weight, args.teacher)

    monkeypatch.setattr(curve, "build_trainer", build)
    recipe = {"model": "model", "train_records": ["records"], "output_dir": "out", "ar_weight": 0.5}
    for variant in (*EASY.values(), *TABLES.values(), *TEXT.values()):
        with pytest.raises(Stopped) as stopped:
            curve.run(variant, recipe, Path("base"), [1], None)
        teacher = "base" if "teacher" in variant.settings else None
        assert stopped.value.args == (variant.settings.get("ar_weight", 0), teacher)


@pytest.mark.parametrize(("flag", "value"), [("--budget", "large"), ("--variants", "magic")])
def test_unknown_names_are_answered_with_the_known_ones(tmp_path, capsys, flag, value):
    assert study.main(["--part", "c", "--out", str(tmp_path), flag, value]) == 2
    message = capsys.readouterr().err
    assert value in message
    assert ("smoke" if flag == "--budget" else BASELINE) in message


def test_a_mean_has_its_standard_error_and_pairs_are_by_seed(tmp_path):
    reached = {BASELINE: [0.5, 0.7, 0.9], "better": [0.6, 0.9, None]}
    for variant, values in reached.items():
        for seed, long in enumerate(values):
            if long is not None:
                way = {"short": 1.0, "long": long, "forwards_per_token": 0.25}
                run = {"variant": variant, "seed": seed, "curve": [{"step": 9, "denoise": way}]}
                if seed:  # as in runs that were made before the way was
                    run["curve"][0]["static"] = {**way, "long": long - 0.1}
                (tmp_path / file_name(variant, seed)).write_text(json.dumps(run))
    (tmp_path / "base.json").write_text('{"short": 1.0, "long": 1.0}')
    runs = read_runs(tmp_path)
    estimate = Estimate.of([0.5, 0.7, 0.9])
    assert estimate.mean == pytest.approx(0.7)
    assert estimate.error == pytest.approx(0.2 / 3**0.5)
    change = differences(runs, "better", "denoise", "long")
    assert change.mean == pytest.approx(0.15)
    assert change.error == pytest.approx(0.05)
    lines = table(runs, "denoise").splitlines()
    assert lines[2].startswith("| better | 2 | 100.0 ± 0.0 | 75.0 ± 15.0 | +15.0 ± 5.0 |")
    assert lines[3].startswith("| baseline | 3 | 100.0 ± 0.0 | 70.0 ± 11.5 |  |")
    lines = table(decoded(runs, "static"), "static").splitlines()
    assert lines[2].startswith("| better | 1 | 100.0 | 80.0 | +20.0 |")
    assert lines[3].startswith("| baseline | 2 | 100.0 ± 0.0 | 70.0 ± 10.0 |  |")
    assert decoded(runs, "static", "speculative") == {}
    assert main([str(tmp_path), "--out", str(tmp_path / "found" / "learn.json")]) == 0
    assert "<svg" in (tmp_path / "found" / "learn.svg").read_text()


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no runs"):
        read_runs(tmp_path)


def test_files_of_variants_do_not_collide():
    for part in (easy, eyes, text):
        assert len({file_name(variant, 0) for variant in part.VARIANTS}) == len(part.VARIANTS)
        assert BASELINE in part.VARIANTS


def test_the_papers_tables_run_on_a_smaller_baseline(made, tmp_path, monkeypatch):
    """With the quickstart's base and records in the places of SmolLM2's."""
    ar = tmp_path / "smollm2" / "ar"
    ar.parent.mkdir()
    ar.symlink_to(easy.BASE)
    (tmp_path / "smollm2" / "data").symlink_to(made / "data")
    monkeypatch.setattr(eyes, "prepare", lambda out, budget: None)
    names = [BASELINE, "D = 16", "one level a sequence", "causal, AR 1, own states"]
    assert study.main(["--part", "b", "--budget", "smoke", "--out", str(tmp_path), "--variants", *names]) == 0
    runs = read_runs(tmp_path)
    assert runs.keys() == {*names}
    assert runs["D = 16"][0]["block_size"] == 16
    assert runs["D = 16"][0]["curve"][-1].keys() >= {"static", "denoise"}
    assert main([str(tmp_path), "--out", str(tmp_path / "learn.json")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["b", "c"])
def test_parts_with_smollm2_run(tmp_path, part):
    pytest.importorskip("gguf")
    assert study.main(["--part", part, "--budget", "smoke", "--out", str(tmp_path)]) == 0
    assert main([str(tmp_path), "--out", str(tmp_path / "learn.json")]) == 0
