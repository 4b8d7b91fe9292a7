"""Mixtures: a YAML file that names data sets, and how many records are taken of each.

datasets:
  - path: llava_next.json          # or json_path
    sampling_strategy: first:50%   # all (default), first:N, end:N, random:N; N may be a share, rounded up
    image_root: images             # where image paths start; the record file's folder if left out
"""

import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..record import DataError

KEYS = {"path", "json_path", "sampling_strategy", "image_root"}
STRATEGY = re.compile(r"all|(first|end|random):(\d+(?:\.\d+)?%|\d+)")


@dataclass(frozen=True)
class Part:
    """One data set of a mixture.

    Attributes:
        path: The data set.
        strategy: Which of its records are taken.
        image_root: Where its image paths start.
    """

    path: str
    strategy: str
    image_root: str | None


def read_mixture(path: Path) -> list[Part]:
    """The data sets that a mixture names; relative paths start from the mixture's folder.

    Raises:
        DataError: The file cannot be read, or says something else than a mixture says.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a YAML file") from error
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: a mixture is a mapping with a list under `datasets`; add one")
    return [_part(entry, f"{path}, data set {number}", path.parent) for number, entry in enumerate(entries, start=1)]


def _part(entry: object, place: str, folder: Path) -> Part:
    if not isinstance(entry, dict) or not entry.keys() <= KEYS or ("path" in entry) == ("json_path" in entry):
        raise DataError(f"{place}: needs `path` and may have `sampling_strategy` and `image_root`, got {entry!r}")
    strategy = str(entry.get("sampling_strategy", "all"))
    if not STRATEGY.fullmatch(strategy):
        raise DataError(f"{place}: sampling_strategy must be all, first:N, end:N or random:N, got {strategy!r}")
    root = entry.get("image_root")
    own = str(entry.get("path", entry.get("json_path")))
    path = own if "://" in own else str(folder / own)
    return Part(path, strategy, None if root is None else str(folder / root))


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
