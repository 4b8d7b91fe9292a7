"""Records of all the kinds of files that are read, as one sequence."""

from glob import glob
from pathlib import Path

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from ..layouts import ImageRoot
from ..record import DataError, Record, Records
from .json_records import JsonRecords
from .mixture import chosen, read_mixture
from .table_records import read_table
from .tar_records import TarRecords

__all__ = ["DataError", "Record", "Records", "read_records"]

HUB = "hf://"
KINDS = f".jsonl, .json, .parquet, .tar or .yaml file, a folder saved by `datasets`, or {HUB}NAME for one of the hub"


def read_records(paths: list[str], image_root: str | None = None, seed: int = 0, check: bool = True) -> Records:
    """Opens records, in order; each is read when it is asked for.

    Args:
        paths: Files, folders or data sets of the hub (`KINDS`), or patterns of files such as `shards-*.tar`.
        image_root: Folder that image paths start from and may not leave; the record file's own folder if left out.
        seed: Seed for what mixtures draw at random.
        check: Parse every record of JSON files once, so that a mistake is told now and not hours later.

    Raises:
        DataError: A file is missing, broken or empty, or a record does not have one of the known layouts.
    """
    return _joined([_open(path, image_root, seed, check) for path in paths])


def _joined(sources: list[Records]) -> Records:
    return sources[0] if len(sources) == 1 else ConcatDataset(sources)  # type: ignore[arg-type]


def _open(path: str, image_root: str | None, seed: int, check: bool) -> Records:
    """The records of a file, a folder or a data set of the hub, of all files of a pattern, or of a mixture."""
    if "*" in path:
        files = sorted(glob(path))
        if not files:
            raise DataError(f"{path}: matches no file; check the pattern")
        return _joined([_open(file, image_root, seed, check) for file in files])
    if Path(path).suffix in (".yaml", ".yml"):
        sources: list[Records] = []
        for number, part in enumerate(read_mixture(Path(path)), start=1):
            source = _open(part.path, part.image_root or image_root, seed, check)
            indices = chosen(part.strategy, len(source), seed, f"{path}, data set {number}")
            # An array, since forked data loading processes would copy a list of numbers, page by page.
            sources.append(Subset(source, np.asarray(indices)))  # type: ignore[arg-type]
        return _joined(sources)
    source = _open_one(path, image_root, check)
    if not len(source):
        raise DataError(f"{path}: holds no records; add some or leave the file out")
    return source


def _open_one(path: str, image_root: str | None, check: bool) -> Records:
    """The records of one file, folder or data set of the hub."""
    file = Path(path)
    root = ImageRoot(Path(image_root) if image_root else file.parent, bool(image_root))
    if file.suffix in (".jsonl", ".json"):
        return JsonRecords(file, root, check)
    if file.suffix == ".tar":
        return TarRecords(file, root)
    if file.suffix == ".parquet" or path.startswith(HUB) or Path(path.partition(":")[0]).is_dir():
        return read_table(path.removeprefix(HUB), image_root)
    if not file.exists():
        raise DataError(f"{path}: there is no such file; give a {KINDS}")
    raise DataError(f"{path}: unknown kind of file {file.suffix!r}; give a {KINDS}")
