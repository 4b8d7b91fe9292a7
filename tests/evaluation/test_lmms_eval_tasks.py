"""The plugin through lmms-eval's own evaluator, on local tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history
from lmms_eval.tasks import TaskManager

from diffusionvl.evaluation.costs import TaskCost, gather_processes
from diffusionvl.evaluation.lmms_eval_model import DiffusionVLChat, DiffusionVLSimple

QUESTIONS = [
    "what shape is in the image?",
    "describe the image in detail. " * 2 + "describe the image in detail.",
    "is there a circle?",
    "what is the color of the shape?",
    "which shapes are missing from the image?",
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: text
doc_to_target: {target}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""


def write_task(folder, name, documents, extra, target="answer", metric="exact_match"):
    """A local task of lmms-eval with its data."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, target=target, metric=metric) + extra)


@pytest.fixture(scope="module")
def task_manager(tmp_path_factory):
    """Two local tasks: open questions without images, and a choice."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [{"text": text, "answer": "yes", "label": n % 2} for n, text in enumerate(QUESTIONS)]
    write_task(folder, "open", questions, "output_type: generate_until\ngeneration_kwargs: {max_new_tokens: 6}\n")
    write_task(
        folder, "choice", questions, 'output_type: multiple_choice\ndoc_to_choice: ["yes", "no"]\n', "label", "acc"
    )
    return TaskManager(include_path=str(folder), include_defaults=False)


def run(model, tasks, task_manager, **options):
    return simple_evaluate(
        model=model, tasks=tasks, task_manager=task_manager, bootstrap_iters=0, log_samples=True, **options
    )


def test_evaluator_runs_it_and_the_same_run_gives_the_same_samples(translated_dir, task_manager):
    runs = []
    for batch_size in (1, 5, 5):
        model = DiffusionVLChat(translated_dir, device="cpu", batch_size=batch_size)
        results = run(model, ["open"], task_manager)
        assert results["results"]["open"]["exact_match,none"] == 0
        assert results["throughput"]["total_gen_tokens"] > 5
        runs.append(json.dumps(results["samples"], default=str))
    assert len(set(runs)) == 1
    (costs,) = get_logged_metrics_history()
    assert costs["requests"] == 5
    assert {"tokens_per_second", "forwards_per_token", "seconds_to_first_block", "paper_tokens_per_second"} <= {*costs}


@pytest.mark.parametrize("kind", ["base_dir", "translated_dir"])
def test_evaluator_chooses_the_likelier_continuation(kind, request, task_manager):
    folder = request.getfixturevalue(kind)
    model = DiffusionVLSimple(folder, device="cpu", likelihood_samples=2)
    samples = run(model, ["choice"], task_manager)["samples"]["choice"]
    assert len(samples) == 5
    for sample in samples:
        losses = [loss for loss, _ in sample["filtered_resps"]]
        assert min(losses) > 0
        assert sample["acc"] == (losses[sample["doc"]["label"]] == min(losses))


def test_costs_of_all_processes_are_joined(monkeypatch):
    def gathered(everyone, own):
        everyone[:] = [own, {"b": TaskCost(1, 30, 6, 3.0, 1.0, 20, 5.0, 1)}]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    own = {"a": TaskCost(2, 8, 4, 1.0, 1.0, 8, 2.0, 1), "b": TaskCost(1, 10, 2, 1.0, 3.0, 10, 2.0, 1)}
    joined = gather_processes(own, 2)
    assert sorted(joined) == ["a", "b"]
    metrics = joined["b"].metrics()
    assert metrics["tokens_per_second"] == 40 / 4
    assert metrics["forwards_per_token"] == 8 / 40
    assert metrics["seconds_to_first_block"] == 2
    assert metrics["paper_tokens_per_second"] == 30 / (5 * 2)


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(translated_dir, tmp_path, task_manager):
    """Stock lmms-eval by torchrun; the entry point comes with the installed package."""
    command = ["-m", "lmms_eval", "--model", "diffusionvl", "--model_args", f"pretrained={translated_dir}"]
    command += ["--tasks", "open", "--include_path", task_manager.include_path, "--device", "cpu", "--log_samples"]
    answers = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        subprocess.run(
            [sys.executable, *launcher, *command, "--output_path", str(out), "--verbosity", "DEBUG"],
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        (samples,) = Path(out).glob("*/*_samples_open.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        answers.append({line["doc_id"]: line["filtered_resps"] for line in lines})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 5
