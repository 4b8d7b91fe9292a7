"""Suites are run task by task; lmms-eval is a stand-in that behaves well, fails, or fails with exit code 0."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from eval import bertscore, run
from eval.results import COSTS, read_run, read_samples
from eval.suites import read_suite

# Writes what lmms-eval 0.7.3 writes, the samples of two processes one after the other.
STAND_IN = (
    f"COSTS = {COSTS}"
    + """
import json, pathlib, sys
task, raw = sys.argv[1:3]
folder = pathlib.Path(raw, "model")
folder.mkdir(parents=True)
counts = {"n-samples": {task: {"original": 9, "effective": 3}}, "higher_is_better": {task: {"exact_match": True}}}
throughput = {"total_gen_tokens": 5, **{"avg_" + name: 12.5 for name in COSTS}}
scores = {"alias": task, "exact_match,none": 0.25, "exact_match_stderr,none": 0.1}
results = {"results": {task: scores}, "throughput": throughput, **counts}
(folder / "1_results.json").write_text(json.dumps(results))
samples = [{"doc_id": number, "filtered_resps": str(number), "target": "0"} for number in (0, 2, 1)]
(folder / f"1_samples_{task}.jsonl").write_text("".join(json.dumps(s) + chr(10) for s in samples))
"""
)
FAILS = "import sys; print('Traceback'); print('[rank0]: ValueError: there is no moon'); print('bye'); sys.exit({})"


@pytest.fixture
def lmms_eval(monkeypatch):
    """Commands that stand for lmms-eval by task, and those that were run."""
    stand_in = SimpleNamespace(code={}, ran=[])

    def command(arguments, job, raw):
        task = job.run.task.name
        stand_in.ran.append(job.run.name)
        return [sys.executable, "-c", stand_in.code.get(task, STAND_IN), task, str(raw)]

    monkeypatch.setattr(run, "lmms_eval_command", command)
    monkeypatch.setattr(run, "prepare_local_data", lambda: None)
    return stand_in


def test_runs_are_written_and_not_run_again(lmms_eval, translated_dir, tmp_path, capsys):
    argv = ["local", translated_dir, "--out", str(tmp_path), "--name", "mine"]
    assert run.main(argv) == 0
    names = ["easy_vqa_short", "easy_vqa_long"]
    assert lmms_eval.ran == names
    folder = tmp_path / "mine" / "local" / "easy_vqa_short"
    record = read_run(folder)
    assert (record.kind, record.samples, record.settings) == ("block_diffusion", 3, {"block_size": 8, "temperature": 0})
    assert record.metrics == {**dict.fromkeys(COSTS, 12.5), "exact_match": 0.25}
    assert record.errors == {"exact_match": 0.1}
    assert [sample["doc_id"] for sample in read_samples(record)] == [0, 1, 2]
    assert {path.name for path in folder.iterdir()} == {"run.json", "samples.jsonl", "results.json", "log.txt"}
    (tmp_path / "mine" / "local" / "easy_vqa_long" / "run.json").unlink()
    assert run.main(argv) == 0
    assert lmms_eval.ran == [*names, "easy_vqa_long"]
    assert "easy_vqa_short: finished before, exact_match 25.00 ± 10.00, 12.5 tokens/s" in capsys.readouterr().out


def test_variants_of_an_ar_model_are_one_run(lmms_eval, base_dir, tmp_path):
    assert run.main(["local-speed", base_dir, "--out", str(tmp_path), "--name", "ar"]) == 0
    assert lmms_eval.ran == ["easy_vqa_long@ar"]
    record = read_run(tmp_path / "ar" / "local-speed" / "easy_vqa_long@ar")
    assert record.asked["gen_kwargs"] == {"temperature": "0", "max_new_tokens": "96"}
    assert record.asked["limit"] == 200
    assert record.kind == "ar"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (FAILS.format(3), "ValueError: there is no moon (exit code 3"),
        (FAILS.format(0), "lmms-eval wrote no results: ValueError: there is no moon"),
        (STAND_IN.replace("(0, 2, 1)", "(0, 2)"), "easy_vqa_short has 2 answers to 2 questions, and there are 3"),
        (STAND_IN.replace("(0, 2, 1)", "(0, 2, 2)"), "easy_vqa_short has 3 answers to 2 questions, and there are 3"),
        (STAND_IN.replace("avg_", "median_"), "lmms-eval's results have no requests"),
        (STAND_IN.replace("0.25", "'none'"), "easy_vqa_short has no metric that is a number"),
    ],
)
def test_failures_are_failures_and_do_not_stop_the_rest(code, reason, lmms_eval, translated_dir, tmp_path, capsys):
    lmms_eval.code["easy_vqa_short"] = code
    argv = ["local", translated_dir, "--out", str(tmp_path), "--name", "mine"]
    assert run.main(argv) == 1
    errors = capsys.readouterr().err
    assert f"easy_vqa_short: FAILED: {reason}" in errors
    assert errors.endswith("eval/run.sh: error: 1 of 2 runs failed\n")
    assert read_run(tmp_path / "mine" / "local" / "easy_vqa_long")
    assert read_run(tmp_path / "mine" / "local" / "easy_vqa_short") is None
    lmms_eval.code.clear()
    assert run.main(argv) == 0
    assert lmms_eval.ran[2:] == ["easy_vqa_short"]


def test_another_run_is_not_taken_for_this_one(lmms_eval, translated_dir, tmp_path, capsys):
    argv = ["local", translated_dir, "--out", str(tmp_path), "--name", "mine", "--tasks", "easy_vqa_short"]
    assert run.main(argv) == 0
    assert run.main([*argv, "--limit", "5"]) == 2
    assert "holds another run (limit None there, 5 now); give another --out" in capsys.readouterr().err
    assert run.main([*argv, "--batch-size", "3"]) == 0  # does not decide the answers
    assert lmms_eval.ran == ["easy_vqa_short"]
    assert run.main([*argv, "--limit", "5", "--overwrite"]) == 0
    assert read_run(tmp_path / "mine" / "local" / "easy_vqa_short").asked["limit"] == 5
    assert run.main([*argv, "--limit", "5", "--gen-kwargs", "max_new_tokens=12", "--overwrite"]) == 0
    record = read_run(tmp_path / "mine" / "local" / "easy_vqa_short")
    assert record.settings == {"block_size": 8, "temperature": 0, "max_new_tokens": 12}


def test_another_checkpoint_in_the_same_place_is_not_taken_for_this_one(lmms_eval, base_dir, tmp_path, capsys):
    shutil.copytree(base_dir, tmp_path / "model")
    argv = ["local", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--tasks", "easy_vqa_short"]
    assert run.main(argv) == 0
    settings = tmp_path / "model" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"repetition_penalty": 1.5}))
    assert run.main(argv) == 2
    assert (
        "easy_vqa_short holds another run (of files that have changed); give another --out" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["moon"], "there is no suite 'moon'; there are detailcaps, local"),
        (["local", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["local", "--nproc", "0"], "--nproc must be at least 1, got 0"),
        (["local", "--tasks", "mme"], "--tasks mme: suite local has easy_vqa_short"),
        (["local", "--gen-kwargs", "x"], "--gen-kwargs 'x': write NAME=VALUE"),
        (["local", "--gen-kwargs", "steps=3"], "--gen-kwargs: unknown settings ['steps']; 'steps' is called"),
        (["local", "--gen-kwargs", "denoising_steps=9"], "denoising_steps=9 exceeds the block size"),
        (["local-speed", "--gen-kwargs", "denoising_steps=4"], "denoising_steps is what the ways of suite local-speed"),
        (["table-7", "--gen-kwargs", "confidence_threshold=1"], "confidence_threshold is what the ways of suite"),
        (["local", "--name", "a,b"], "a,b holds ',', at which lmms-eval cuts its options; give another place"),
    ],
)
def test_what_cannot_be_run(change, message, translated_dir, tmp_path, capsys):
    suite, *flags = change
    assert run.main([suite, translated_dir, "--out", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_no_checkpoint(tmp_path, capsys):
    assert run.main(["local", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no checkpoint that transformers can read" in capsys.readouterr().err


def test_command_line_of_lmms_eval(translated_dir, tmp_path):
    flags = ["--nproc", "2", "--limit", "7", "--model-args", "dtype=float16", "--gen-kwargs", "denoising_steps=4"]
    arguments = run.build_parser().parse_args(["local", translated_dir, "--out", str(tmp_path), *flags])
    suite = read_suite("local")
    run.check_values(arguments, suite)
    job = run.plan(arguments, suite)[1]
    command = run.lmms_eval_command(arguments, job, tmp_path / "raw")
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    pairs = dict(zip(command[8:-1:2], command[9:-1:2], strict=True))
    assert pairs["--tasks"] == "easy_vqa_long"
    assert pairs["--gen_kwargs"] == "temperature=0,denoising_steps=4"
    assert pairs["--limit"] == "7"
    assert pairs["--verbosity"] == "DEBUG"
    showcase = (job.folder / "showcase").resolve()
    assert pairs["--model_args"] == f"pretrained={translated_dir},dtype=float16,showcase={showcase}"
    assert "--force_simple" not in command
    arguments.model_args = "prompt=reference"
    command = run.lmms_eval_command(arguments, run.plan(arguments, suite)[1], tmp_path / "raw")
    assert command[-1] == "--force_simple"


def test_lmms_eval_is_missing(translated_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert run.main(["local", translated_dir, "--out", str(tmp_path)]) == 2
    assert "lmms-eval is missing; bash scripts/setup.sh dev,eval installs it" in capsys.readouterr().err


def test_a_suite_names_the_metric_that_stands_for_a_task(lmms_eval, translated_dir, tmp_path, capsys):
    argv = ["table-6", translated_dir, "--out", str(tmp_path), "--name", "mine", "--tasks", "mmstar"]
    assert run.main(argv) == 1
    assert "mmstar has no metric 'average', but ['exact_match']; mend the suite" in capsys.readouterr().err
    two = '"average,none": 0.5, "exact_match,none"'
    code = STAND_IN.replace('"exact_match,none"', two).replace(
        '{"exact_match": True}', '{"exact_match": 1, "average": 1}'
    )
    lmms_eval.code["mmstar"] = code
    assert run.main(argv) == 0
    assert read_run(tmp_path / "mine" / "table-6" / "mmstar").main_metric == "average"


@pytest.fixture
def captions(lmms_eval):
    """A run of captions, each with two references."""
    code = STAND_IN.replace('"target": "0"', '"target": json.dumps(["a", "b"])').replace("exact_match", "words")
    lmms_eval.code["detailcaps_captions"] = code
    return ["table-7", "--name", "mine", "--out"]


def test_bertscore_is_optional(captions, translated_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bertscore, "find_spec", lambda name: None)
    assert run.main([*captions, str(tmp_path), translated_dir]) == 0
    assert "BERTScore is left out, the package bert-score is missing; pip install" in capsys.readouterr().out
    assert bertscore.main([str(tmp_path)]) == 2
    asked = []

    def score(captions, references, **options):
        asked.append((captions, references, options))
        return None, None, SimpleNamespace(mean=lambda: 0.302)

    monkeypatch.setitem(sys.modules, "bert_score", SimpleNamespace(score=score))
    monkeypatch.setattr(bertscore, "find_spec", lambda name: name)
    assert bertscore.main([str(tmp_path)]) == 0
    assert asked[0] == (["0", "1", "2"], [["a", "b"]] * 3, {"lang": "en", "rescale_with_baseline": True})
    record = read_run(tmp_path / "mine" / "table-7" / "detailcaps_captions@dynamic-0.8")
    assert (record.main_metric, record.metrics["bertscore"]) == ("bertscore", 30.2)
    assert record.higher_is_better == {"bertscore": True, "words": True}
    monkeypatch.setattr(sys.modules["bert_score"], "score", lambda *a, **k: (0, 0, SimpleNamespace(mean=lambda: 0.5)))
    assert bertscore.main([str(tmp_path)]) == 0  # again, as after another version of it
    assert read_run(record.folder).metrics["bertscore"] == 50


def test_captions_are_kept_where_bertscore_fails(captions, lmms_eval, translated_dir, tmp_path, capsys, monkeypatch):
    def score(*_, **__):
        raise OSError("no hub")

    monkeypatch.setitem(sys.modules, "bert_score", SimpleNamespace(score=score))
    monkeypatch.setattr(bertscore, "find_spec", lambda name: name)
    argv = [*captions, str(tmp_path), translated_dir]
    assert run.main(argv) == 1
    assert "dynamic-0.8: FAILED: no hub" in capsys.readouterr().err
    ran = len(lmms_eval.ran)
    sys.modules["bert_score"].score = lambda *_, **__: (0, 0, SimpleNamespace(mean=lambda: 0.302))
    assert run.main(argv) == 0
    assert len(lmms_eval.ran) == ran == 5
    assert "finished before, bertscore 30.2" in capsys.readouterr().out
