"""Runs by task, and lines of quality over speed for tasks that were run in several ways."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusionvl.evaluation import AR
from eval.results import RunRecord


@dataclass(frozen=True)
class Curve:
    """Ways of decoding of one model, from many forwards a token to few.

    Attributes:
        name: Name in the legend.
        kind: `ar` or `block_diffusion`.
        metric: The task's main metric, which quality means here.
        labels: Labels of the points.
        speeds: Tokens a second of decoding.
        forwards: Forwards a token.
        quality: Values of the metric.
    """

    name: str
    kind: str
    metric: str
    labels: list[str]
    speeds: list[float]
    forwards: list[float]
    quality: list[float]


def task_names(runs: Sequence[RunRecord]) -> dict[tuple[str, str], str]:
    """Names each suite's task: by its own name, or with its suite where there are several."""
    several = len({run.suite for run in runs}) > 1
    return {(run.suite, run.task): f"{run.suite}: {run.task}" if several else run.task for run in runs}


def by_task(records: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """Groups runs by suite and task, in their order."""
    tasks: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        tasks.setdefault((record.suite, record.task), []).append(record)
    return tasks


def curves(records: Sequence[RunRecord]) -> dict[str, list[Curve]]:
    """Draws up lines of quality over speed for each task that was run in several ways.

    Returns:
        Curves by the name of the task; static and dynamic remasking of a model are lines of their own.
    """
    found = {}
    for (suite, task), runs in by_task(records).items():
        if not any(run.variant for run in runs):
            continue
        lines: dict[tuple[str, str], list[RunRecord]] = {}
        for run in runs:
            way = "" if run.kind == AR else run.variant.rpartition("-")[0]
            lines.setdefault((run.model, way), []).append(run)
        found[f"{suite}: {task}"] = [_curve(model, way, own) for (model, way), own in sorted(lines.items())]
    return found


def _curve(model: str, way: str, runs: Sequence[RunRecord]) -> Curve:
    """Joins runs into one line, from many forwards to few."""
    ordered = sorted(runs, key=lambda run: -run.metrics["forwards_per_token"])
    metric = ordered[0].main_metric
    return Curve(
        name=f"{model}, {way}" if way else model,
        kind=ordered[0].kind,
        metric=metric,
        labels=[run.variant.rpartition("-")[2] or run.variant for run in ordered],
        speeds=[run.metrics["tokens_per_second"] for run in ordered],
        forwards=[run.metrics["forwards_per_token"] for run in ordered],
        quality=[run.metrics[metric] for run in ordered],
    )


def ar_speed(drawn: Sequence[Curve]) -> float | None:
    """Returns the tokens a second of the AR model among some curves."""
    return next((curve.speeds[0] for curve in drawn if curve.kind == AR), None)
