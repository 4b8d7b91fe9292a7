"""Every suite and every file of published figures of the repository, and what is wrong in others."""

import pytest

from diffusionvl.evaluation import AR, BLOCK_DIFFUSION
from diffusionvl.evaluation.settings import resolve
from eval.suites import EVAL, read_expected, read_suite, suite_names


@pytest.mark.parametrize("name", suite_names())
def test_suites_are_settings_that_the_plugin_takes(name):
    suite = read_suite(name)
    assert suite.title
    assert suite.source
    for kind, block_size in ((BLOCK_DIFFUSION, 8), (AR, None)):
        runs = suite.runs(kind, block_size)
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            resolve(kind, block_size, {}, run.gen_kwargs)
    local = {path.stem for path in (EVAL / "tasks").glob("*.yaml")}
    assert suite.data == "hub" or {task.name for task in suite.tasks} <= local


@pytest.mark.parametrize("path", sorted((EVAL / "expected").glob("*.json")), ids=lambda path: path.stem)
def test_expected_figures_belong_to_a_suite(path):
    suite, expected = read_suite(path.stem), read_expected(path.stem)
    assert {figure.task for figure in expected.numbers} <= {task.name for task in suite.tasks}
    assert all(figure.source and figure.value > 0 for figure in expected.numbers)
    assert set(expected.against.values()) <= set(expected.models)


def test_figures_of_the_paper():
    figures = {(f.model, f.label): f for f in read_expected("tables-1-2").numbers}
    assert figures["DiffusionVL-7B", "ChartQA"].value == 84.2
    assert figures["Qwen2.5-VL-3B", "MME-p"].value == 1533
    assert ("LaViDa-L-8B", "MMStar") not in figures
    assert figures["released DiffusionVL-7B, run by a user", "MMMU"].source.startswith("LyxDLiI")
    thresholds = {figure.settings["confidence_threshold"]: figure.value for figure in read_expected("table-7").numbers}
    assert thresholds == {1.0: 30.2, 0.8: 30.1, 0.6: 29.7, 0.4: 27.4, 0.2: 18.6}
    assert read_expected("detailcaps").numbers == ()


def test_tokens_a_step_become_steps_of_the_checkpoints_block():
    suite = read_suite("local-speed")
    steps = {run.variant: run.gen_kwargs.get("denoising_steps") for run in suite.runs(BLOCK_DIFFUSION, 8)}
    assert [steps[f"static-{n}"] for n in ("1.0", "1.33", "2.0", "4.0", "8.0")] == [8, 6, 4, 2, 1]
    assert steps["dynamic-0.9"] is None
    large = {run.variant: run.gen_kwargs.get("denoising_steps") for run in suite.runs(BLOCK_DIFFUSION, 96)}
    assert [large[f"static-{n}"] for n in ("1.0", "1.33", "2.0")] == [96, 72, 48]
    assert [run.name for run in suite.runs(AR, None)] == ["easy_vqa_long@ar"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [{name: a}]\ntitle: t\nsource: s\ndata: hub\ncolour: 1\n", "colour"),
        ("title: t\nsource: s\ndata: hub\n", "tasks"),
        ("tasks: [{name: a}]\ntitle: t\nsource: s\ndata: moon\n", "data must be"),
        ("tasks: [{name: a}]\ntitle: t\nsource: s\ndata: hub\ngen_kwargs: {steps: 8}\n", "is called 'denoising_steps'"),
    ],
)
def test_broken_suite_is_reported_with_its_file(text, message, tmp_path):
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
        read_suite("mine", tmp_path)
    with pytest.raises(ValueError, match="no suite 'other'; there are mine"):
        read_suite("other", tmp_path)
