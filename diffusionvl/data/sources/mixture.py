"""Mixtures: a YAML file that names data sets, and the number of records that are taken of each.

datasets:
  - path: llava_next.json          # or json_path
    sampling_strategy: first:50%   # all (default), first:N, end:N, random:N; N may be a share, rounded up
    image_root: images             # where image paths start; the record file's folder if left out
    columns: {images: photo}       # keys that are called otherwise in the records
    ignore: [score]                # keys of records, turns and parts that are left out
"""

import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

from ..record import DataError
from ..references import brief
from .files import read_yaml

KEYS = {"path", "json_path", "sampling_strategy", "image_root", "columns", "ignore"}
STRATEGY = re.compile(r"all|(first|end|random):(\d{1,12}(?:\.\d{1,12})?%|\d{1,12})")


@dataclass(frozen=True)
class Entry:
    """One data set of a mixture.

    Attributes:
        path: The data set.
        strategy: Which of its records are taken.
        image_root: Where its image paths start.
        columns: What its keys are called otherwise, by the names that are known.
        ignore: Its keys that are left out.
    """

    path: str
    strategy: str
    image_root: str | None
    columns: dict[str, str]
    ignore: tuple[str, ...]


def read_mixture(path: Path) -> list[Entry]:
    """The data sets that a mixture names; relative paths start from the mixture's folder.

    Raises:
        DataError: The file cannot be read, or says something else than a mixture says.
    """
    content = read_yaml(path)
    entries = content.get("datasets") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: a mixture is a mapping with a list under `datasets` and nothing else; add one")
    return [_entry(entry, f"{path}, data set {number}", path.parent) for number, entry in enumerate(entries, start=1)]


def _entry(entry: object, place: str, folder: Path) -> Entry:
    if not isinstance(entry, dict) or not entry.keys() <= KEYS or ("path" in entry) == ("json_path" in entry):
        optional = sorted(KEYS - {"path", "json_path"})
        raise DataError(f"{place}: needs `path` and may have {optional}, got {brief(entry)}")
    strategy = str(entry.get("sampling_strategy", "all"))
    if not STRATEGY.fullmatch(strategy):
        raise DataError(f"{place}: sampling_strategy must be all, first:N, end:N or random:N, got {strategy[:80]!r}")
    columns, ignore = entry.get("columns") or {}, entry.get("ignore") or []
    if not isinstance(columns, dict) or not all(isinstance(word, str) for pair in columns.items() for word in pair):
        raise DataError(f"{place}: columns must map names to names, got {brief(columns)}")
    if not isinstance(ignore, list) or not all(isinstance(key, str) for key in ignore):
        raise DataError(f"{place}: ignore must be a list of keys, got {brief(ignore)}")
    root, own = entry.get("image_root"), entry.get("path", entry.get("json_path"))
    if not isinstance(own, str) or not isinstance(root, str | None):
        raise DataError(f"{place}: path and image_root must be texts, got {brief(own)} and {brief(root)}")
    path = own if "://" in own else str(folder / own)
    return Entry(path, strategy, None if root is None else str(folder / root), columns, tuple(ignore))


def chosen(strategy: str, count: int, seed: int, place: str) -> range | list[int]:
    """Indices of the records that a strategy takes of `count`, the same in every process.

    Raises:
        DataError: There are fewer.
    """
    if strategy == "all":
        return range(count)
    way, _, size = strategy.partition(":")
    wanted = math.ceil(count * float(size[:-1]) / 100) if size.endswith("%") else int(size)
    if wanted > count:
        raise DataError(f"{place}: sampling_strategy {strategy!r} asks for {wanted} of {count} records; lower it")
    if way == "random":
        return sorted(random.Random(seed).sample(range(count), wanted))
    return range(wanted) if way == "first" else range(count - wanted, count)
