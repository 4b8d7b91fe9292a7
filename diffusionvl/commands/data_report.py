"""What is in a data set, and what is wrong with it, as a table and as JSON."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = 20  # lines of each list in the table; JSON has all
BEGINNING = b'{\n "records": '  # of a report in JSON
QUANTILES = {"least": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "most": 100}


@dataclass(frozen=True)
class Problem:
    """Something that training would stop at.

    Attributes:
        kind: What kind of problem it is, in a word or two.
        message: What is wrong: place, value and remedy.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Finding:
    """What became of one record.

    Attributes:
        problems: Empty for a record that can be used.
        name: Where the record stands.
        clean: Tokens of its clean stream, 0 if truncation leaves nothing to learn from.
        row: Tokens of its row, clean and noisy ones.
        supervised: Tokens that carry loss.
        truncated: Whether it was truncated.
        notes: What is odd about it, though it can be used.
    """

    problems: list[Problem] = field(default_factory=list)
    name: str = ""
    clean: int = 0
    row: int = 0
    supervised: int = 0
    truncated: bool = False
    notes: list[str] = field(default_factory=list)


class CheckReport:
    """The findings on all records.

    Args:
        problems: With whole files.
        findings: On every record of the others.
    """

    def __init__(self, problems: list[Problem], findings: list[Finding]) -> None:
        self.records = len(findings)
        self.problems = [*problems, *(problem for finding in findings for problem in finding.problems)]
        self.bad = len(problems) + sum(bool(finding.problems) for finding in findings)
        usable = [finding for finding in findings if not finding.problems]
        self.truncated = [finding.name for finding in usable if finding.truncated]
        self.dropped = [finding.name for finding in usable if not finding.clean]
        self.rows = [finding for finding in usable if finding.clean]
        self.notes = [(finding.name, note) for finding in usable for note in finding.notes]

    @property
    def kinds(self) -> dict[str, int]:
        """Number of problems of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        clean = sum(finding.clean for finding in self.rows)
        return {
            "records": self.records,
            "usable": len(self.rows),
            "kinds": self.kinds,
            "problems": [vars(problem) for problem in self.problems],
            "notes": [f"{name}: {note}" for name, note in self.notes],
            "truncated": self.truncated,
            "dropped": self.dropped,
            "clean_tokens": quantiles([finding.clean for finding in self.rows]),
            "row_tokens": quantiles([finding.row for finding in self.rows]),
            "supervised_share": sum(finding.supervised for finding in self.rows) / clean if clean else 0.0,
        }

    def to_text(self) -> str:
        """A table."""
        numbers = self.to_json()
        lines = [f"records     {self.records:,}, of which {len(self.rows):,} give a row"]
        lines += [f"problems    {len(self.problems):,}"]
        lines += [f"            {count:>9,}  {kind}" for kind, count in self.kinds.items()]
        odd = Counter(note for _, note in self.notes)
        lines += [f"notes       {len(self.notes):,}"]
        lines += [f"            {count:>9,}  {note}" for note, count in odd.items()]
        lines += [f"truncated   {len(self.truncated):,}, {len(self.dropped):,} of them to nothing: dropped"]
        if self.rows:
            lines += ["tokens      " + "".join(f"{name:>9}" for name in numbers["row_tokens"])]
            for title, key in (("clean", "clean_tokens"), ("row", "row_tokens")):
                lines += [f"  {title:10}" + "".join(f"{value:>9,}" for value in numbers[key].values())]
            lines += [f"supervised  {numbers['supervised_share']:.1%} of the clean tokens"]
        lines += _listed([problem.message for problem in self.problems])
        lines += _listed(numbers["notes"])
        lines += _listed([f"{name}: dropped by truncation" for name in self.dropped])
        kept = set(self.truncated) - set(self.dropped)
        return "\n".join([*lines, *_listed([f"{name}: truncated" for name in self.truncated if name in kept])])


def quantiles(values: list[int]) -> dict[str, int]:
    """Quantiles and mean, rounded; empty for no values."""
    if not values:
        return {}
    found = np.percentile(values, list(QUANTILES.values())).round().astype(int).tolist()
    return dict(zip(QUANTILES, found, strict=True)) | {"mean": round(sum(values) / len(values))}


def _listed(lines: list[str]) -> list[str]:
    """The first lines of a list, and the number of the others."""
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"... and {more:,} more; --json FILE writes all of them"] if more > 0 else [])]


def is_report(path: Path) -> bool:
    """Whether a file was written by this command, and may be replaced."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING
