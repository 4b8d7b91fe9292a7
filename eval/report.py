"""`python -m eval.report OUT ... --html FILE`: writes results as one page that needs no other file.

It shows accuracy by task, speed beside quality, samples with the answers of all models, a film, and how the runs were
made. Charts are also written as PNG beside the page.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from diffusionvl.commands.command_line import Parser
from diffusionvl.drawing.film import data_url
from diffusionvl.drawing.page import render
from diffusionvl.evaluation import AR
from diffusionvl.evaluation.card import Card, open_card_image, read_cards
from eval.curves import ar_speed, by_task, curves, task_names
from eval.results import RunRecord, percent, read_runs, read_samples

VERSIONS = ("torch", "transformers", "lmms_eval", "diffusionvl")
CARDS = 6  # that are shown of one task


@dataclass(frozen=True)
class ShownAnswer:
    """One model's answer on a card.

    Attributes:
        model: Name of the model.
        text: The answer.
        score: Its score by the task's main metric, or None where that is not a number.
    """

    model: str
    text: str
    score: float | None


@dataclass(frozen=True)
class ShownQuestion:
    """A question with the answers of several models.

    Attributes:
        image: The first picture, or None.
        question: Text of the prompt.
        target: The right answer.
        answers: An answer of each model.
    """

    image: Image.Image | None
    question: str
    target: str
    answers: list[ShownAnswer]


@dataclass(frozen=True)
class ShownTask:
    """Some questions of one task.

    Attributes:
        task: Name of the task.
        samples: Some of its questions.
        film: A film of one answer, or nothing.
        filmed: The model whose answer that is.
    """

    task: str
    samples: list[ShownQuestion]
    film: Markup
    filmed: str


def plain_runs(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Picks one run for each model and task: its best way of decoding by the main metric."""
    best: dict[tuple[str, str, str], RunRecord] = {}
    for record in records:
        key = (record.suite, record.task, record.model)
        other = best.get(key)
        if other is None or _goodness(record) > _goodness(other):
            best[key] = record
    return list(best.values())


def _goodness(record: RunRecord) -> float:
    """Returns the main metric, turned so that more is better."""
    value = record.metrics[record.main_metric]
    return value if record.higher_is_better.get(record.main_metric, True) else -value


def accuracy_table(records: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Lists the models, and for each score of each task its name, the number of questions and every model's value."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    chosen = plain_runs(records)
    names, asked = task_names(chosen), {}
    for place, runs in by_task(chosen).items():
        asked[place] = " or ".join(dict.fromkeys(f"{run.samples:,}" for run in runs))
    for record in chosen:
        for metric in dict.fromkeys([record.main_metric, *record.higher_is_better]):
            value = record.shown(metric)
            shown = f"{value} ({record.variant})" if record.variant and record.variant != AR else value
            rows.setdefault((record.suite, record.task, metric), {})[record.model] = shown
    models = model_names(chosen)
    lines = [
        [f"{names[suite, task]} · {metric}", asked[suite, task], *(values.get(model, "–") for model in models)]
        for (suite, task, metric), values in sorted(rows.items())
    ]
    return models, lines


def cost_table(records: Sequence[RunRecord]) -> list[list[str]]:
    """Lists what the answers cost, for tasks that were run in one way: a row for each task and model.

    A speed is divided by the AR model's where both were run with the same batch size on the same hardware.
    """
    lines, names = [], task_names(records)
    ordered = sorted(records, key=lambda record: (record.suite, record.task, record.kind != AR, record.model))
    for place, runs in by_task(ordered).items():
        if any(run.variant for run in runs):
            continue
        for run in runs:
            alike = [other for other in runs if other.kind == AR and _place(other) == _place(run)]
            speed = run.metrics["tokens_per_second"]
            times = f"{speed / alike[0].metrics['tokens_per_second']:.2f}x" if alike else "–"
            lines.append(
                [
                    names[place],
                    run.model,
                    f"{run.metrics['forwards_per_token']:.3f}",
                    f"{speed:,.1f}",
                    times,
                    f"{run.metrics['seconds_to_first_block']:.3f}",
                    str(run.setup["batch_size"]),
                ]
            )
    return lines


def setup_table(records: Sequence[RunRecord]) -> list[list[str]]:
    """Lists how each run was made: date, hardware, versions, decoding settings and time."""
    names = task_names(records)
    return [
        [
            f"{names[run.suite, run.task]}{f' ({run.variant})' if run.variant else ''}",
            run.model,
            str(run.setup.get("date", "–")),
            f"{run.setup['hardware']}, {run.setup['processes']} x {run.setup.get('threads', '–')} threads",
            ", ".join(f"{name} {run.setup[name]}" for name in VERSIONS if name in run.setup),
            ", ".join(f"{name} {value}" for name, value in run.settings.items()) or "the checkpoint's own",
            f"{run.setup['seconds']:,.0f} s" if "seconds" in run.setup else "–",
        ]
        for run in sorted(records, key=lambda run: (names[run.suite, run.task], run.kind != AR, run.model, run.variant))
    ]


def _place(record: RunRecord) -> tuple[Any, ...]:
    """Returns what runs must have in common for their speeds to be compared."""
    return tuple(record.setup[name] for name in ("batch_size", "processes", "hardware"))


def model_names(records: Sequence[RunRecord]) -> list[str]:
    """Lists the models, AR ones first."""
    ordered = sorted(records, key=lambda record: (record.kind != AR, record.model))
    return list(dict.fromkeys(record.model for record in ordered))


def task_samples(records: Sequence[RunRecord]) -> list[ShownTask]:
    """Collects cards of each task, with the answers of every model that answered the same question."""
    models, names, shown = model_names(records), task_names(records), []
    ordered = sorted(plain_runs(records), key=lambda record: models.index(record.model))
    for place, runs in sorted(by_task(ordered).items()):
        cards = {run.model: {card.number: card for card in read_cards(run.folder / "showcase")} for run in runs}
        samples = {run.model: {sample["doc_id"]: sample for sample in read_samples(run)} for run in runs}
        everyone: list[dict[int, Any]] = [*cards.values(), *samples.values()]
        numbers = [number for number in cards[runs[-1].model] if all(number in own for own in everyone)]
        chosen = [_sample(runs, number, cards, samples) for number in numbers[:CARDS]]
        films = [(Markup(card.film), model) for model, own in cards.items() for card in own.values() if card.film]
        if chosen:
            shown.append(ShownTask(names[place], chosen, *(films[0] if films else (Markup(), ""))))
    return shown


def _sample(
    runs: Sequence[RunRecord],
    number: int,
    cards: dict[str, dict[int, Card]],
    samples: dict[str, dict[int, dict[str, Any]]],
) -> ShownQuestion:
    """Joins the cards of one question."""
    last = runs[-1]
    card = cards[last.model][number]
    answers = []
    for run in runs:
        score = samples[run.model][number].get(run.main_metric)
        number_or_none = float(score) if isinstance(score, int | float) else None
        answers.append(ShownAnswer(run.model, cards[run.model][number].answer, number_or_none))
    target = readable_target(samples[last.model][number]["target"])
    return ShownQuestion(open_card_image(last.folder / "showcase", card), card.question, target, answers)


def readable_target(target: str) -> str:
    """Returns a target as people read it: of a list of references as JSON, the first one."""
    try:
        references = json.loads(target)
    except json.JSONDecodeError:
        return target
    if isinstance(references, list) and references and isinstance(references[0], str):
        return references[0]
    return target


def write_report(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes the page, and its charts as PNG beside it, into a folder that may be new."""
    from eval.report_charts import accuracy_chart, save_png, speed_chart  # late: matplotlib takes a moment to import

    path.parent.mkdir(parents=True, exist_ok=True)
    models, lines = accuracy_table(records)
    speed = {}
    accuracy = accuracy_chart(models, plain_runs(records))
    save_png(accuracy, path.with_name(f"{path.stem}-accuracy.png"))
    for number, (task, drawn) in enumerate(curves(records).items()):
        chart = speed_chart(drawn)
        save_png(chart, path.with_name(f"{path.stem}-speed-{number}.png"))
        speed[task] = (Markup(chart.svg), drawn)
    page = render(
        Path(__file__).with_name("report.html.jinja"),
        records=records,
        models=models,
        lines=lines,
        costs=cost_table(records),
        setups=setup_table(records),
        accuracy=Markup(accuracy.svg),
        best_of_several=any(record.variant for record in plain_runs(records)),
        speed=speed,
        ar_speed=ar_speed,
        percent=percent,
        tasks=task_samples(records),
        data_url=data_url,
    )
    path.write_text(page, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Writes the report.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m eval.report", description="Write a page of results.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUT", help="folders that eval/run.sh wrote")
    parser.add_argument("--html", type=Path, help="the page; report.html in the first folder if left out")
    return parser.run(_report, argv)


def _report(arguments: argparse.Namespace) -> None:
    path = arguments.html or arguments.folders[0] / "report.html"
    write_report(path, read_runs(arguments.folders))
    print(f"wrote {path} and its charts as PNG")


if __name__ == "__main__":
    sys.exit(main())
