"""`python -m eval.compare OUT`: what was measured beside what was published.

Prints a table and writes `compare.json` and `compare.png` into OUT.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Chart

from diffusionvl.commands.command_line import Parser, table
from diffusionvl.modeling.errors import UserError
from eval.results import RunRecord, read_runs
from eval.suites import Expected, Figure, read_expected

HEADER = ("model", "suite", "task", "metric", "measured", "expected", "difference", "expected of")


@dataclass(frozen=True)
class Comparison:
    """One number, and the published one if there is any.

    Attributes:
        model: That was run.
        suite: Of the run.
        task: With the way of decoding.
        metric: As it was published, or as the task calls it.
        measured: On the published scale, or None where the run has it not, such as BERTScore without its package.
        expected: The published number, or None.
        against: Whose it is, or nothing.
        source: Where it was published, or nothing.
        limit: Number of first questions that were asked, or None for all of them.
    """

    model: str
    suite: str
    task: str
    metric: str
    measured: float | None
    expected: float | None
    against: str
    source: str
    limit: int | None

    @property
    def difference(self) -> float | None:
        """Measured minus expected."""
        return None if self.measured is None or self.expected is None else self.measured - self.expected


def compare(records: Sequence[RunRecord], against: str = "") -> list[Comparison]:
    """Sets every published number beside the measured one.

    Runs without published numbers are told by their main metric alone.

    Args:
        records: Finished runs.
        against: A published model; if left out, the one that a run or its suite names.

    Raises:
        UserError: No suite of these runs has figures of that model.
    """
    expected = {suite: read_expected(suite) for suite in dict.fromkeys(record.suite for record in records)}
    models = list(dict.fromkeys(model for one in expected.values() for model in one.models))
    if against and against not in models:
        raise UserError(f"--against {against!r}: nothing is published of it here; there are {models}")
    return [row for record in records for row in _rows(record, expected[record.suite], against)]


def _rows(record: RunRecord, expected: Expected, against: str) -> list[Comparison]:
    """The comparisons of one run."""
    name = against or record.against or expected.against.get(record.kind, "")
    figures = [figure for figure in expected.figures if figure.model == name and _fits(figure, record)]
    limit = record.asked["limit"]
    place = (record.model, record.suite, record.name)
    if not figures:
        metric = record.main_metric
        return [Comparison(*place, metric, record.metrics[metric], None, "", "", limit)]
    rows = []
    for figure in figures:
        measured = record.metrics.get(figure.metric)
        scaled = None if measured is None else measured * figure.scale
        rows.append(Comparison(*place, figure.label, scaled, figure.value, figure.model, figure.source, limit))
    return rows


def _fits(figure: Figure, record: RunRecord) -> bool:
    """Whether a published number is about what was run."""
    same = all(record.settings.get(name) == value for name, value in figure.settings.items())
    return figure.task == record.task and same


def table_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """The comparisons as text."""
    rows = []
    for row in comparisons:
        task = f"{row.task} (first {row.limit})" if row.limit else row.task
        numbers = [_number(row.measured), _number(row.expected), _number(row.difference, "+")]
        rows.append([row.model, row.suite, task, row.metric, *numbers, row.against or "-"])
    return rows


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if abs(value) < 1 else f"{value:{sign}.2f}"


def draw_comparison(comparisons: Sequence[Comparison], path: Path) -> None:
    """Writes a chart: each measured number in per cent of the published one.

    Args:
        comparisons: With both numbers; others are left out.
        path: `.png`.
    """
    known = [(row, row.measured, row.expected) for row in comparisons if row.measured is not None and row.expected]
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Chart(figsize=(8, max(1.6, 0.8 + 0.3 * len(known))), layout="constrained")
        axes = figure.subplots()
        if known:
            labels = [f"{row.model} · {row.task} · {row.metric}" for row, *_ in known]
            shares = [100 * measured / expected for _, measured, expected in known]
            bars = axes.barh(range(len(known)), shares, color="#2a7fd4")
            axes.bar_label(bars, [f"{measured:.4g} / {expected:.4g}" for _, measured, expected in known], padding=4)
            axes.set_yticks(range(len(known)), labels)
            axes.invert_yaxis()
            axes.axvline(100, color="#8b8f98", linestyle="--", linewidth=1)
            axes.set_xlim(min(0.0, 1.25 * min(shares)), max(125.0, 1.25 * max(shares)))
        axes.set_xlabel("measured in per cent of the published number")
        figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    """Compares.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m eval.compare", description="Set results beside published figures.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUT", help="folders that eval/run.sh wrote")
    parser.add_argument("--against", default="", help="published model; the one that a run or suite names if left out")
    return parser.run(_compare, argv)


def _compare(arguments: argparse.Namespace) -> None:
    """Compares, writes and prints."""
    comparisons = compare(read_runs(arguments.folders), arguments.against)
    out = arguments.folders[0]
    content = [{**asdict(row), "difference": row.difference} for row in comparisons]
    (out / "compare.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw_comparison(comparisons, out / "compare.png")
    print(table(HEADER, table_rows(comparisons)))
    for source in dict.fromkeys(row.source for row in comparisons if row.source):
        print(f"expected: {source}")
    print(f"wrote {out / 'compare.json'} and compare.png")


if __name__ == "__main__":
    sys.exit(main())
