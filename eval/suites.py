"""Suites: which tasks are run with which settings, and what was published about them.

`eval/suites/NAME.yaml` says what is run, `eval/expected/NAME.json` what came out elsewhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffusionvl.evaluation import AR
from diffusionvl.modeling.errors import UserError

EVAL = Path(__file__).parent
LOCAL, HUB = "local", "hub"
TOKENS_PER_STEP = "tokens_per_step"  # sets denoising_steps by the checkpoint's block size


@dataclass(frozen=True)
class Task:
    """One benchmark of a suite.

    Attributes:
        name: Name in lmms-eval.
        gen_kwargs: Settings that only this task has.
        metric: The task's main metric; the first one that it names if left out.
        bertscore: Whether its answers are captions that BERTScore judges.
    """

    name: str
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    bertscore: bool = False


@dataclass(frozen=True)
class Suite:
    """Tasks that are run together.

    Attributes:
        name: Name of its file.
        title: Name for people.
        source: Where its settings come from.
        data: `local`: written by `python -m eval.tasks.make_data`. `hub`: downloaded by lmms-eval.
        tasks: The tasks in the order in which they are run.
        model_args: Options of the plugin.
        gen_kwargs: Settings of all tasks.
        variants: Name and settings of each way in which every task is run; one way without a name if empty.
        batch_size: Number of questions that are answered together by default.
        limit: Number of first questions of each task that are asked by default; None for all.
    """

    name: str
    title: str
    source: str
    data: str
    tasks: tuple[Task, ...]
    model_args: dict[str, Any] = field(default_factory=dict)
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: int = 1
    limit: int | None = None

    @property
    def varied(self) -> set[str]:
        """Settings in which the ways differ."""
        names = {name for settings in self.variants.values() for name in settings}
        return {"denoising_steps" if name == TOKENS_PER_STEP else name for name in names}

    def runs(self, kind: str, block_size: int | None) -> "list[Run]":
        """Lists what is to be run for a model: every task in every way that differs for it.

        An AR model has no denoising steps and no thresholds, so ways that differ in these alone are one way.
        """
        from diffusionvl.evaluation.settings import DIFFUSION_ONLY  # late: torch takes seconds to import

        runs: list[Run] = []
        for task in self.tasks:
            for variant, settings in (self.variants or {"": {}}).items():
                merged = {**self.gen_kwargs, **task.gen_kwargs, **settings}
                tokens_per_step = merged.pop(TOKENS_PER_STEP, None)
                if kind == AR:
                    merged = {name: value for name, value in merged.items() if name not in DIFFUSION_ONLY}
                elif tokens_per_step and block_size:
                    merged["denoising_steps"] = max(round(block_size / tokens_per_step), 1)
                run = Run(task, AR if kind == AR and self.variants else variant, merged)
                if run not in runs:
                    runs.append(run)
        return runs


@dataclass(frozen=True)
class Run:
    """One task in one way.

    Attributes:
        task: A task of the suite.
        variant: Name of the way, or nothing.
        gen_kwargs: All decoding settings.
    """

    task: Task
    variant: str
    gen_kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """Name for people and folders."""
        return f"{self.task.name}@{self.variant}" if self.variant else self.task.name


def suite_names(folder: Path = EVAL) -> list[str]:
    """Lists the names of all suites."""
    return sorted(path.stem for path in (folder / "suites").glob("*.yaml"))


def read_suite(name: str, folder: Path = EVAL) -> Suite:
    """Reads `suites/NAME.yaml`.

    Raises:
        UserError: There is no such suite, or its file has an unknown key or setting.
    """
    from diffusionvl.evaluation.settings import check_names  # late: torch takes seconds to import

    path = folder / "suites" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"there is no suite {name!r}; there are {', '.join(suite_names(folder))}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        tasks = tuple(Task(**task) for task in content.pop("tasks"))
        suite = Suite(name=name, tasks=tasks, **content)
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: {error}; see the other files of that folder") from error
    if suite.data not in (LOCAL, HUB):
        raise UserError(f"{path}: data must be {LOCAL!r} or {HUB!r}, got {suite.data!r}")
    for settings in (suite.gen_kwargs, *(task.gen_kwargs for task in tasks), *suite.variants.values()):
        check_names({key: value for key, value in settings.items() if key != TOKENS_PER_STEP}, str(path))
    return suite


@dataclass(frozen=True)
class PublishedNumber:
    """A published number.

    Attributes:
        model: The model that it was published for.
        label: Its name where it was published.
        task: Name of the task in lmms-eval.
        metric: Name of the metric in our results.
        value: The number on the published scale.
        scale: Factor from our result to the published scale.
        settings: Settings that a run must have to be comparable, such as its block size.
        source: Where it was published.
    """

    model: str
    label: str
    task: str
    metric: str
    value: float
    scale: float
    settings: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Expected:
    """What was published about a suite.

    Attributes:
        numbers: All published numbers.
        against: For each kind of model, the published model that it is compared with by default.
    """

    numbers: tuple[PublishedNumber, ...]
    against: dict[str, str]

    @property
    def models(self) -> list[str]:
        """All published models, in the order of the file."""
        return list(dict.fromkeys(number.model for number in self.numbers))


def read_expected(name: str, folder: Path = EVAL) -> Expected:
    """Reads `expected/NAME.json`; without such a file, nothing is expected."""
    path = folder / "expected" / f"{name}.json"
    if not path.is_file():
        return Expected((), {})
    content = json.loads(path.read_text(encoding="utf-8"))
    numbers = []
    for row in content["rows"]:
        for label, value in row["figures"].items():
            column = content["columns"][label]
            source = row.get("source", content["source"])
            place = (column["task"], column["metric"], value, column["scale"])
            numbers.append(PublishedNumber(row["model"], label, *place, row.get("settings", {}), source))
    return Expected(tuple(numbers), content["against"])
