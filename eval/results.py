"""Folders of finished runs: what was asked, what came out, and every answer.

`OUT / model / suite / task[@variant]` holds `run.json`, `samples.jsonl`, lmms-eval's own `results.json`, `log.txt` and
`showcase/`. `run.json` is written last, so a folder with it is finished.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from diffusionvl.evaluation import AR, BLOCK_DIFFUSION
from diffusionvl.evaluation.costs import TaskCost
from diffusionvl.modeling.errors import UserError

RUN = "run.json"
COSTS = tuple(TaskCost().metrics())
# What tables and pages read.
COSTS_SHOWN = ("tokens_per_second", "forwards_per_token", "seconds_to_first_block", "paper_tokens_per_second")
ASKED, SETUP = ("model", "limit"), ("hardware", "batch_size", "processes")


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        model: Name of the model.
        suite: Name of the suite.
        task: Name of the task in lmms-eval.
        variant: Name of the way of decoding, or nothing.
        kind: Kind of the model: `ar` or `block_diffusion`.
        asked: What decides the answers: checkpoint, options, settings, limit.
        settings: What distinguishes ways of decoding: block size and decoding settings.
        metrics: Scores of the task, and what its answers cost.
        higher_is_better: Whether each score of the task is better when higher; the first one is its main metric.
        samples: Number of questions.
        against: Model whose published figures it is compared with, or nothing for the suite's own choice.
        setup: Batch size, processes, hardware, versions, date and seconds, which do not decide the answers.
        folder: Folder of the run.
        errors: Standard errors of the scores that lmms-eval estimates, by name.
    """

    model: str
    suite: str
    task: str
    variant: str
    kind: str
    asked: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, float]
    higher_is_better: dict[str, bool]
    samples: int
    against: str
    setup: dict[str, Any]
    folder: Path = Path()
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The task with the way of decoding."""
        return f"{self.task}@{self.variant}" if self.variant else self.task

    @property
    def main_metric(self) -> str:
        """The metric that stands for the task."""
        return "bertscore" if "bertscore" in self.metrics else next(iter(self.higher_is_better))

    def shown(self, metric: str) -> str:
        """Writes a score with its standard error, shares in per cent: one scale for all numbers."""
        scale = percent(self.metrics[metric])
        error = self.errors.get(metric)
        return f"{scale * self.metrics[metric]:.2f}" + ("" if error is None else f" ± {scale * error:.2f}")

    def check(self) -> None:
        """Checks that all is there that tables, charts and pages read.

        Raises:
            UserError: Something is missing or of another type.
        """
        for one in fields(self):
            kind = get_origin(hints[one.name]) or hints[one.name]
            if not isinstance(getattr(self, one.name), kind):
                raise UserError(f"{one.name} is {getattr(self, one.name)!r}")
        numbers = {**dict.fromkeys(COSTS_SHOWN), **dict.fromkeys(self.higher_is_better)}
        for name in numbers:
            if not isinstance(self.metrics.get(name), int | float):
                raise UserError(f"metrics has no number {name!r}")
        for name, error in self.errors.items():
            if not isinstance(error, int | float):
                raise UserError(f"errors has no number {name!r}")
        if self.kind not in (AR, BLOCK_DIFFUSION):
            raise UserError(f"kind is {self.kind!r}")
        if not self.higher_is_better:
            raise UserError("higher_is_better names no metric")
        for name, place, holds in (("asked", self.asked, ASKED), ("setup", self.setup, SETUP)):
            if missing := [key for key in holds if key not in place]:
                raise UserError(f"{name} has no {missing[0]!r}")


hints = get_type_hints(RunRecord)


def percent(value: float) -> int:
    """Returns the factor by which a score is shown: 100 for a share, 1 for any other number."""
    return 100 if 0 <= value <= 1 else 1


def write_run(record: RunRecord) -> None:
    """Writes `run.json` into the run's folder."""
    content = {name: value for name, value in asdict(record).items() if name != "folder"}
    (record.folder / RUN).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_run(folder: Path) -> RunRecord | None:
    """Reads the finished run of a folder, if there is one.

    Raises:
        UserError: Its `run.json` is broken.
    """
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        record = RunRecord(**json.loads(path.read_text(encoding="utf-8")), folder=folder)
        record.check()
        return record
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} is broken ({error}); delete it and run the suite again") from error


def read_runs(folders: Iterable[str | Path]) -> list[RunRecord]:
    """Reads all finished runs below some folders.

    Raises:
        UserError: A folder is missing, or holds none; or two runs have the same names, so that they would be taken
            for one.
    """
    records: dict[tuple[str, str, str], RunRecord] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"there is no folder {str(folder)!r}; give one that eval/run.sh wrote")
        found = [record for path in sorted(Path(folder).rglob(RUN)) if (record := read_run(path.parent))]
        if not found:
            raise UserError(f"{str(folder)!r} holds no finished run; give a folder that eval/run.sh wrote")
        for record in found:
            other = records.setdefault((record.model, record.suite, record.name), record)
            if other.folder.resolve() != record.folder.resolve():
                raise UserError(
                    f"{other.folder} and {record.folder} are both {record.name} of {record.model!r}; give one of them, "
                    "or run one again with another --name"
                )
    return list(records.values())


def collect(raw: Path, folder: Path, task: str) -> tuple[dict[str, Any], int]:
    """Takes over what lmms-eval wrote for one task; samples come in the order of the documents.

    Args:
        raw: Its `--output_path`.
        folder: For `results.json` and `samples.jsonl`.
        task: Name of the task.

    Returns:
        Its results, and the number of samples.

    Raises:
        UserError: There are no results, or not a sample for every question.
    """
    found = sorted(raw.glob("*/*_results.json"))
    if not found:
        raise UserError("lmms-eval wrote no results")
    results = json.loads(found[-1].read_text(encoding="utf-8"))
    if task not in results["results"]:
        raise UserError(f"lmms-eval's results hold no task {task!r}, but {sorted(results['results'])}")
    samples = [
        json.loads(line)
        for path in sorted(raw.glob(f"*/*_samples_{task}.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    expected = results["n-samples"][task]["effective"]
    answered = len({sample["doc_id"] for sample in samples})
    if len(samples) != expected or answered != expected:
        raise UserError(f"{task} has {len(samples)} answers to {answered} questions, and there are {expected}")
    samples.sort(key=lambda sample: sample["doc_id"])  # several processes write theirs one after the other
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "results.json").write_text(found[-1].read_text(encoding="utf-8"), encoding="utf-8")
    return results, len(samples)


def task_metrics(
    results: dict[str, Any], task: str, main: str = ""
) -> tuple[dict[str, float], dict[str, bool], dict[str, float]]:
    """Reads the numbers of one task from lmms-eval's results.

    Args:
        results: What `collect` returned.
        task: Name of the task.
        main: Its main metric; the first one that it names if left out.

    Returns:
        Scores and costs; whether each score is better when higher, the main one first; standard errors of scores.

    Raises:
        UserError: There is no number, not this metric, or no costs.
    """
    numbers = {
        name.split(",")[0]: float(value)
        for name, value in results["results"][task].items()
        if "," in name and isinstance(value, int | float)
    }
    found = {name: value for name, value in numbers.items() if "stderr" not in name}
    errors = {name: numbers[f"{name}_stderr"] for name in found if f"{name}_stderr" in numbers}
    order = {name: bool(higher) for name, higher in results["higher_is_better"][task].items() if name in found}
    if not order:
        raise UserError(f"{task} has no metric that is a number: {results['results'][task]}")
    if main and main not in order:
        raise UserError(f"{task} has no metric {main!r}, but {sorted(order)}; mend the suite")
    if main:
        order = {main: order[main], **order}
    # lmms-eval calls our costs means, since it expects many of them.
    throughput = {name.removeprefix("avg_"): value for name, value in results.get("throughput", {}).items()}
    if missing := [name for name in COSTS if name not in throughput]:
        raise UserError(f"lmms-eval's results have no {missing[0]}")
    return {**{name: throughput[name] for name in COSTS}, **found}, order, errors


def read_samples(record: RunRecord) -> list[dict[str, Any]]:
    """Reads every answer of a run.

    Raises:
        UserError: The file is broken.
    """
    path = record.folder / "samples.jsonl"
    try:
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if all({"doc_id", "target"} <= sample.keys() for sample in samples):
            return samples
        error: Exception = UserError("a sample has no doc_id or target")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as broken:
        error = broken
    raise UserError(f"{path} is broken ({error}); run the task again with --overwrite") from error
