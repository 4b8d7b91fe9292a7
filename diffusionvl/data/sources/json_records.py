"""Records of JSON files: their places are found once, and each is parsed when it is asked for."""

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from ..dialects import without_duplicates
from ..record import DataError, Record
from ..record_parser import RecordParser
from ..references import brief
from .files import check_regular

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What the structure of a JSON text is made of: brackets, and strings, in which brackets are text.
STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', re.DOTALL)
LONGEST = 2**28  # bytes of a line


class JsonRecords:
    """Records of a `.jsonl` file (one a line) or a `.json` file (a list).

    Memory holds where each record stands, 24 bytes a record, and never the file: data loading processes share it.

    Args:
        path: The file.
        parser: Reads each record.
        check: Parse every record once, so that a mistake far down the file is reported now and not hours later.

    Raises:
        DataError: The file cannot be read or, with `check`, a record in it is broken.
    """

    def __init__(self, path: Path, parser: RecordParser, check: bool = True) -> None:
        self.path = path
        self.parser = parser
        self.is_list = path.suffix == ".json"
        check_regular(path)
        spans = array("q")
        try:
            for begin, end, line, raw in self._list_items(check) if self.is_list else self._lines(check):
                spans.extend((begin, end, line))
                if check:
                    parser.parse(raw, self._place(line, len(spans) // 3))
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
        return self.parser.parse(raw, self._place(line, index + 1))

    def _place(self, line: int, number: int) -> str:
        return f"{self.path}:{line}, record {number}" if self.is_list else f"{self.path}:{line}"

    def _lines(self, parse: bool) -> Iterator[tuple[int, int, int, Any]]:
        """Begin, end, number and parsed content of each line that holds something."""
        with open(self.path, "rb") as file:
            begin = 0
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
                if len(line) == LONGEST:
                    raise DataError(f"{self.path}:{number}: has more than {LONGEST} bytes; drop it", "broken line")
                content = line.rstrip()
                if content:
                    raw = load_json(decode(content, self.path, number), self.path, number) if parse else None
                    yield begin, begin + len(content), number, raw
                begin += len(line)

    def _list_items(self, parse: bool) -> Iterator[tuple[int, int, int, Any]]:
        """Begin, end, line and parsed content of each object of the list, without the whole file in memory."""
        with open(self.path, "rb") as file:
            # Not closed by hand: the search holds on to it.
            content = mmap(file.fileno(), 0, access=ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
        depth = begin = number = 0
        done, line = len(BYTE_ORDER_MARK) if content[:3] == BYTE_ORDER_MARK else 0, 1
        for found in STRUCTURE.finditer(content):
            mark = found[0]
            if mark in (b"{", b"["):
                depth += 1
                if depth == 2:
                    begin = found.start()
                    if content[done:begin].strip() != (b"," if number else b"["):
                        break
                    line += content[done:begin].count(b"\n")
            elif mark in (b"}", b"]"):
                depth -= 1
                if depth == 1:
                    item = content[begin : found.end()]
                    raw = load_json(decode(item, self.path, line), self.path, line) if parse else None
                    yield begin, found.end(), line, raw
                    line, done, number = line + item.count(b"\n"), found.end(), number + 1
                elif depth == 0:
                    rest = content[done : found.end()].strip() + content[found.end() :].strip()
                    if rest == (b"]" if number else b"[]"):
                        return
                    break
        whole = load_json(decode(self.path.read_bytes(), self.path), self.path)  # says where it breaks
        raise DataError(
            f"{self.path}: holds {type(whole).__name__} {brief(whole)}, not a list of records; "
            "put it in [ ] or name it .jsonl",
            "broken line",
        )


def decode(content: bytes, path: Path, first_line: int = 1) -> str:
    """Decodes UTF-8.

    Raises:
        DataError: The bytes are something else; the message names the line.
    """
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
    """Parses JSON.

    Raises:
        DataError: It is broken; the message names line and column.
    """
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        place = f"{path}:{first_line + error.lineno - 1}"
        raise DataError(
            f"{place}: broken JSON at column {error.colno}: {error.msg}; mend or drop the line", "broken line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise DataError(f"{path}:{first_line}: {error}; mend or drop the record", "broken line") from error
