"""Records of all the kinds of files that are read, as one sequence."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from ..record import DataError, Record, Records
from ..record_parser import RecordParser
from ..references import ImageRoot
from .files import HUB, KINDS
from .json_records import JsonRecords
from .mixture import chosen, read_mixture
from .table_records import TableRecords, open_table
from .tar_records import TarRecords

__all__ = ["DataError", "Record", "Records", "read_records"]


def read_records(
    paths: list[str],
    image_root: str | None = None,
    seed: int = 0,
    check: bool = True,
    allow_web: bool = False,
    answered: bool = True,
) -> Records:
    """Opens records, in order; each is read when it is asked for.

    Args:
        paths: Files, folders or data sets of the hub (`KINDS`), or patterns of files such as `shards-*.tar`.
        image_root: Folder that image paths start from and may not leave; the record file's own folder if left out.
        seed: Seed for what mixtures draw at random.
        check: Parse every record of JSON files once, so that a mistake is reported now and not hours later.
        allow_web: Fetch pictures that are given by an address on the web, whenever they are needed.
        answered: Refuse records without an answer to learn from.

    Raises:
        DataError: A file is missing, broken or empty, or a record is written in no known dialect.
    """
    reader = Reader(image_root, seed, check, allow_web, answered)
    return _joined([reader.open(path) for path in paths])


def _joined(sources: list[Records]) -> Records:
    return sources[0] if len(sources) == 1 else ConcatDataset(sources)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Reader:
    """Opens files of records in one way; the attributes are those of `read_records` and of a mixture's entries."""

    image_root: str | None = None
    seed: int = 0
    check: bool = True
    allow_web: bool = False
    answered: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    mixtures: tuple[str, ...] = ()  # those that led here

    def open(self, path: str) -> Records:
        """The records of a file, a folder or a data set of the hub, of all files of a pattern, or of a mixture."""
        if "*" in path:
            files = sorted(glob(path))
            if not files:
                raise DataError(f"{path}: matches no file; check the pattern")
            return _joined([self.open(file) for file in files])
        if Path(path).suffix in (".yaml", ".yml"):
            return self._mixture(path)
        source = self._open_one(path)
        if not len(source):
            raise DataError(f"{path}: holds no records; add some or leave the file out")
        if self.check:
            source[0]  # what is wrong with a table's columns is wrong with its first row
        return source

    def _mixture(self, path: str) -> Records:
        """The records that a mixture takes of each of its data sets."""
        here = os.path.realpath(path)
        if here in self.mixtures:
            raise DataError(f"{path}: a mixture that names itself; take it out of itself")
        sources: list[Records] = []
        for number, entry in enumerate(read_mixture(Path(path)), start=1):
            own = replace(
                self,
                image_root=entry.image_root or self.image_root,
                columns={**self.columns, **entry.columns},
                ignore=(*self.ignore, *entry.ignore),
                mixtures=(*self.mixtures, here),
            )
            source = own.open(entry.path)
            indices = chosen(entry.strategy, len(source), self.seed, f"{path}, data set {number}")
            # An array, since forked data loading processes would copy a list of numbers, page by page.
            sources.append(Subset(source, np.asarray(indices, dtype=np.int64)))  # type: ignore[arg-type]
        if not sum(map(len, sources)):
            raise DataError(f"{path}: takes no record of its data sets; raise a sampling_strategy")
        return _joined(sources)

    def _open_one(self, path: str) -> Records:
        """The records of one file, folder or data set of the hub."""
        file = Path(path)
        if file.suffix in (".jsonl", ".json"):
            return JsonRecords(file, self._parser(file.parent), self.check)
        if file.suffix == ".tar":
            return TarRecords(file, self._parser(file.parent))
        if file.suffix == ".parquet" or path.startswith(HUB) or Path(path.partition(":")[0]).is_dir():
            table, folder = open_table(path.removeprefix(HUB))
            return TableRecords(table, path.removeprefix(HUB), self._parser(folder))
        if not file.exists():
            raise DataError(f"{path}: there is no such file; give a {KINDS}")
        raise DataError(f"{path}: unknown kind of file {file.suffix!r}; give a {KINDS}")

    def _parser(self, folder: Path) -> RecordParser:
        """Reads the records of a file in a folder."""
        root = ImageRoot(Path(self.image_root) if self.image_root else folder, bool(self.image_root), self.allow_web)
        return RecordParser(root, self.columns, self.ignore, self.answered)
