"""`python -m eval.compare OUT`: sets what was measured beside what was published.

It prints a table and writes `compare.json` and `compare.png` into OUT.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusionvl.commands.command_line import Parser, table
from diffusionvl.modeling.errors import UserError
from eval.results import RunRecord, percent, read_runs
from eval.suites import Expected, PublishedNumber, read_expected

HEADER = ("model", "suite", "task", "metric", "measured", "expected", "difference", "expected of")


@dataclass(frozen=True)
class Comparison:
    """One number, and the published one if there is any.

    Attributes:
        model: Name of the model that was run.
        suite: Suite of the run.
        task: Task of the run, with the way of decoding.
        metric: Name of the number where it was published, or else in the task.
        measured: The number on the published scale, shares else in per cent; None where the run lacks it, such as
            BERTScore without its package.
        error: Its standard error on the same scale, or None.
        expected: The published number, or None.
        against: The model that it was published for, or nothing.
        source: Where it was published, or nothing.
        limit: Number of first questions that were asked, or None for all of them.
    """

    model: str
    suite: str
    task: str
    metric: str
    measured: float | None
    error: float | None
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

    Of runs without published numbers, the main metric alone is listed.

    Args:
        records: Finished runs.
        against: A published model; if left out, the one that a run or its suite names.

    Raises:
        UserError: Nothing was published for that model in the suites of these runs.
    """
    expected = {suite: read_expected(suite) for suite in dict.fromkeys(record.suite for record in records)}
    models = list(dict.fromkeys(model for one in expected.values() for model in one.models))
    if against and against not in models:
        raise UserError(f"--against {against!r}: nothing was published for it here; the models are {models}")
    return [row for record in records for row in _rows(record, expected[record.suite], against)]


def _rows(record: RunRecord, expected: Expected, against: str) -> list[Comparison]:
    """Compares one run."""
    name = against or record.against or expected.against.get(record.kind, "")
    published = [number for number in expected.numbers if number.model == name and _fits(number, record)]
    limit = record.asked["limit"]
    place = (record.model, record.suite, record.name)
    if not published:
        metric = record.main_metric
        scale = percent(record.metrics[metric])
        return [Comparison(*place, metric, *_scaled(record, metric, scale), None, "", "", limit)]
    return [
        Comparison(*place, one.label, *_scaled(record, one.metric, one.scale), one.value, one.model, one.source, limit)
        for one in published
    ]


def _scaled(record: RunRecord, metric: str, scale: float) -> tuple[float | None, float | None]:
    """A number and its standard error on a scale; None for what the run lacks."""
    found = (record.metrics.get(metric), record.errors.get(metric))
    measured, error = (None if value is None else value * scale for value in found)
    return measured, error


def _fits(number: PublishedNumber, record: RunRecord) -> bool:
    """Whether a published number is about what was run."""
    same = all(record.settings.get(name) == value for name, value in number.settings.items())
    return number.task == record.task and same


def table_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Writes the comparisons as text."""
    rows = []
    for row in comparisons:
        task = f"{row.task} (first {row.limit})" if row.limit else row.task
        measured = _number(row.measured) + ("" if row.error is None else f" ± {row.error:.2f}")
        numbers = [measured, _number(row.expected), _number(row.difference, "+")]
        rows.append([row.model, row.suite, task, row.metric, *numbers, row.against or "-"])
    return rows


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def draw_comparison(comparisons: Sequence[Comparison], path: Path) -> None:
    """Writes a chart of each measured number in per cent of the published one.

    Args:
        comparisons: Those without both numbers are left out.
        path: The `.png` file.
    """
    import matplotlib as mpl  # late: it takes a moment to import
    from matplotlib.figure import Figure

    known = [(row, row.measured, row.expected) for row in comparisons if row.measured is not None and row.expected]
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(8, max(1.6, 0.8 + 0.3 * len(known))), layout="constrained")
        axes = figure.subplots()
        if known:
            labels = [f"{row.model} · {row.task} · {row.metric}" for row, *_ in known]
            shares = [100 * measured / expected for _, measured, expected in known]
            bars = axes.barh(range(len(known)), shares, color="#2a7fd4")
            axes.bar_label(bars, [f"{measured:.2f} / {expected:.2f}" for _, measured, expected in known], padding=4)
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
