"""Records of tables: parquet files and data sets of Hugging Face `datasets`, memory-mapped by that library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..record import DataError, Record
from ..record_parser import RecordParser
from .files import check_regular

if TYPE_CHECKING:
    import datasets

DEFAULT_SPLIT = "train"
# A parquet file may unpack to this many bytes, and to this many times its own size.
MOST_UNPACKED, MOST_TIMES = 2**26, 200
ROWS = 64  # that are unpacked at a time to find out


class TableRecords:
    """Rows of a table with the columns of a record; images stay as they are stored until a row is asked for.

    Args:
        table: The table.
        name: What messages call it.
        parser: Reads each row.
    """

    def __init__(self, table: datasets.Dataset, name: str, parser: RecordParser) -> None:
        self.table = table.with_format("arrow")  # plain values: images stay bytes, for `open_image` to check and decode
        self.name = name
        self.parser = parser

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        (row,) = self.table[index].to_pylist()
        return self.parser.parse(row, f"{self.name}:{index + 1}")


def open_table(path: str) -> tuple[datasets.Dataset, Path]:
    """Opens a parquet file, a data set that `datasets` saved to a folder, or one of the hub.

    Args:
        path: A file, or a folder or hub id, the last two followed by `:split` if it is not `train`.

    Returns:
        The table, and the folder that image paths start from.

    Raises:
        DataError: It cannot be read.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(f"{path}: tables need the package datasets; install it with `pip install 'diffusionvl[train]'`")
    import datasets

    name, _, split = path.partition(":")
    folder = Path(name)
    try:
        if folder.suffix == ".parquet":
            _check_parquet(folder)
            table: Any = datasets.Dataset.from_parquet(name)
            folder = folder.parent
        elif folder.is_dir():
            table = datasets.load_from_disk(name)
        else:
            table, folder = datasets.load_dataset(name, split=split or DEFAULT_SPLIT), Path()
    except DataError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{path}: `datasets` cannot read it ({' '.join(str(error).split())[:300]})") from error
    if isinstance(table, datasets.DatasetDict):
        if (split or DEFAULT_SPLIT) not in table:
            raise DataError(f"{path}: has no split {split or DEFAULT_SPLIT!r}; give {name}:SPLIT, of {sorted(table)}")
        table = table[split or DEFAULT_SPLIT]
    return table, folder


def _check_parquet(path: Path) -> None:
    """Refuses a parquet file without rows, or one that unpacks to far more than its size.

    `datasets` writes an unpacked copy; a file of kilobytes may hold gigabytes, as each repeated value counts once.
    """
    import pyarrow.parquet

    size = check_regular(path)
    most = MOST_UNPACKED + MOST_TIMES * size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            unpacked = max(sum(group.total_byte_size for group in groups), 8 * file.metadata.num_rows)
            if not file.metadata.num_rows:
                raise DataError(f"{path}: holds no records; add some or leave the file out")
            if unpacked <= most and size < MOST_UNPACKED:  # a large file does not gain by repetition alone
                unpacked = 0
                for batch in file.iter_batches(ROWS):
                    unpacked += batch.nbytes
                    if unpacked > most:
                        break
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: is broken ({' '.join(str(error).split())[:300]}); write it anew") from error
    if unpacked > most:
        raise DataError(f"{path}: unpacks to more than {most:,} bytes from {size:,}; write it anew, without repetition")
