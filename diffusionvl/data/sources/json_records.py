"""Records of JSON files: their places are found once, and each is parsed when it is asked for."""

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..layouts import ImageRoot, parse_record
from ..record import DataError, Record

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CHUNK = 2**20  # characters of a list that are read at a time


class JsonRecords:
    """Records of a `.jsonl` file (one a line) or a `.json` file (a list).

    Memory holds where each record stands, 24 bytes a record, and never the file: data loading processes share it.

    Args:
        path: The file.
        image_root: Where image paths start.
        check: Parse every record once, so that a mistake far down the file is told now and not hours later.

    Raises:
        DataError: The file cannot be read or, with `check`, a record in it is broken.
    """

    def __init__(self, path: Path, image_root: ImageRoot, check: bool = True) -> None:
        self.path = path
        self.image_root = image_root
        self.is_list = path.suffix == ".json"
        spans = array("q")
        try:
            for begin, end, line, raw in self._list_items() if self.is_list else self._lines(check):
                spans.extend((begin, end, line))
                if check:
                    parse_record(raw, self._place(line, len(spans) // 3), image_root)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give a .jsonl or .json file") from error
        self.spans = np.frombuffer(spans, dtype=np.int64).reshape(-1, 3)  # begin and end in bytes, and line

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Record:
        begin, end, line = self.spans[index].tolist()
        with open(self.path, "rb") as file:
            file.seek(begin)
            content = file.read(end - begin)
        raw = load_json(decode(content, self.path, line), self.path, line)
        return parse_record(raw, self._place(line, index + 1), self.image_root)

    def _place(self, line: int, number: int) -> str:
        return f"{self.path}:{line}, record {number}" if self.is_list else f"{self.path}:{line}"

    def _lines(self, parse: bool) -> Iterator[tuple[int, int, int, Any]]:
        """Begin, end, number and parsed content of each line that holds something."""
        with open(self.path, "rb") as file:
            begin = 0
            for number, line in enumerate(file, start=1):
                content = line.rstrip()
                if content:
                    raw = load_json(decode(content, self.path, number), self.path, number) if parse else None
                    yield begin, begin + len(content), number, raw
                begin += len(line)

    def _list_items(self) -> Iterator[tuple[int, int, int, Any]]:
        """Begin, end, line and parsed content of each item of the list, without the whole file in memory."""
        with open(self.path, "rb") as file:
            text = _Window(self.path, file)
            if not text.take("["):
                whole = load_json(decode(self.path.read_bytes(), self.path), self.path)
                raise DataError(
                    f"{self.path}: holds {type(whole).__name__} {str(whole)[:60]!r}, not a list of records; "
                    "put it in [ ] or name it .jsonl",
                    "broken line",
                )
            closed = text.take("]")
            while not closed:
                yield text.item()
                closed = text.take("]")
                if not closed and not text.take(","):
                    raise text.broken("Expecting ',' delimiter")
            if text.peek():
                raise text.broken("Extra data")


class _Window:
    """The part of a long JSON text that is being read."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.at = 0  # in the window
        self.begin = 0  # of what stands at `at`, in bytes of the file
        self.line = self.column = 1  # of what stands at `at`
        self.ended = False
        self.decoder = json.JSONDecoder()

    def _grow(self) -> None:
        """Reads on, at least doubling what is left."""
        content = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not content
        if content:
            content += self.file.readline()  # whole lines: no character is cut apart
        text = decode(content, self.path, self.line + self.text.count("\n", self.at))
        if self.begin == 0 and content.startswith(BYTE_ORDER_MARK):
            self.begin = len(BYTE_ORDER_MARK)
        self.text, self.at = self.text[self.at :] + text, 0

    def _move(self, end: int) -> None:
        """Goes on to index `end` of the window."""
        passed = self.text[self.at : end]
        lines = passed.count("\n")
        self.line += lines
        self.column = len(passed) - passed.rindex("\n") if lines else self.column + len(passed)
        self.begin += len(passed.encode())
        self.at = end

    def peek(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            rest = self.at
            while rest < len(self.text) and self.text[rest] in " \t\r\n":
                rest += 1
            self._move(rest)
            if rest < len(self.text) or self.ended:
                return self.text[rest : rest + 1]
            self._grow()

    def take(self, mark: str) -> bool:
        """Whether `mark` comes next; then it is passed."""
        found = self.peek() == mark
        if found:
            self._move(self.at + 1)
        return found

    def item(self) -> tuple[int, int, int, Any]:
        """Begin, end, line and content of the JSON value that comes next, which is passed."""
        self.peek()
        while True:
            try:
                raw, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number may go on behind the window
                    break
            except json.JSONDecodeError as error:
                if self.ended:
                    self._move(error.pos)
                    raise self.broken(error.msg) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.broken(str(error)) from error
            self._grow()
        begin, line = self.begin, self.line
        self._move(end)
        return begin, self.begin, line, raw

    def broken(self, what: str) -> DataError:
        """The error for what stands here."""
        place = f"{self.path}:{self.line}"
        return DataError(
            f"{place}: broken JSON at column {self.column}: {what}; mend or drop the record", "broken line"
        )


def decode(content: bytes, path: Path, first_line: int = 1) -> str:
    """Bytes as text, or says where they are none."""
    try:
        return content.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + error.object[: error.start].count(b"\n")
        byte = f"{error.object[error.start]:#04x}"
        raise DataError(f"{path}:{line}: byte {byte} is not UTF-8; save the file as UTF-8", "broken line") from error


def write_jsonl(documents: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes one document a line, making the parent folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def load_json(text: str, path: Path, first_line: int = 1) -> Any:
    """Parses JSON, or says where it breaks."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{first_line + error.lineno - 1}"
        raise DataError(
            f"{place}: broken JSON at column {error.colno}: {error.msg}; mend or drop the line", "broken line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise DataError(f"{path}:{first_line}: absurd JSON ({error}); drop the line", "broken line") from error
