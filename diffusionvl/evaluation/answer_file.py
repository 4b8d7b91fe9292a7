"""A file of answers that grows as they come, so that a run that is stopped loses none of them."""

import json
import os
from pathlib import Path
from typing import Any

from ..modeling.errors import UserError


class AnswerFile:
    """Answers as lines of JSON, with a summary beside them.

    `OUT.jsonl` has a line for each record, in the order in which answers ended; a finished file has the order of the
    records. `OUT.json` says what was asked and, once all is finished, what came out.

    Args:
        path: The `.jsonl` file.
        asked: What decides the answers: records, model and settings.
        overwrite: Whether answers to something else are replaced.

    Raises:
        UserError: The file holds something else, or answers to something else.
    """

    def __init__(self, path: Path, asked: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.summary_path, self.asked = path, path.with_suffix(".json"), asked
        self.lines: dict[int, dict[str, Any]] = {}
        if not overwrite:
            self._check_what_is_there()
        self._write_summary({})
        self._write_lines(path)
        self._file = path.open("a", encoding="utf-8")

    def _check_what_is_there(self) -> None:
        """Reads the answers of an earlier run; a record with an error, and a line that was cut off, are asked again."""
        if not self.path.exists() and not self.summary_path.exists():
            return
        try:
            before = json.loads(self.summary_path.read_text(encoding="utf-8"))["asked"]
            texts = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} or {self.summary_path.name} beside it was not written by `diffusionvl answer`; give "
                "another --out, or --overwrite"
            ) from error
        now = json.loads(json.dumps(self.asked))
        if other := sorted(name for name in {*now, *before} if now.get(name) != before.get(name)):
            changes = "; ".join(
                f"other {name}"
                if isinstance(now.get(name), list)
                else f"{name} {before.get(name)} there, {now[name]} now"
                for name in other
            )
            raise UserError(
                f"{self.path} holds answers to something else ({changes}); give another --out, or --overwrite"
            )
        for text in texts:
            try:
                line = json.loads(text)
                if "answer" in line:
                    self.lines[line["index"]] = line
            except (json.JSONDecodeError, TypeError, KeyError):  # noqa: PERF203
                continue

    def add(self, line: dict[str, Any]) -> None:
        """Writes the line of a record; `index` is the record's number."""
        self.lines[line["index"]] = line
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Puts the lines into the order of the records, and writes the summary."""
        self._file.close()
        self._write_lines(self.path)
        self._write_summary(summary)

    def _write_lines(self, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        lines = [json.dumps(self.lines[index], ensure_ascii=False) + "\n" for index in sorted(self.lines)]
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, path)

    def _write_summary(self, summary: dict[str, Any]) -> None:
        content = json.dumps({"asked": self.asked, **summary}, indent=1, ensure_ascii=False)
        self.summary_path.write_text(content + "\n", encoding="utf-8")
