"""Records of tables: parquet files and data sets of Hugging Face `datasets`, memory-mapped by that library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..layouts import ImageRoot, parse_record
from ..record import DataError, Record

if TYPE_CHECKING:
    import datasets

DEFAULT_SPLIT = "train"


class TableRecords:
    """Rows of a table with the columns of a record; images stay as they are stored until a row is asked for.

    Args:
        table: The table.
        name: What it is called in messages.
        image_root: Where image paths start.

    Raises:
        DataError: It has no column of turns.
    """

    def __init__(self, table: datasets.Dataset, name: str, image_root: ImageRoot) -> None:
        if not {"messages", "conversations"} & set(table.column_names):
            raise DataError(
                f"{name}: needs a column 'messages' or 'conversations', has {table.column_names}; rename one"
            )
        self.table = table.with_format("arrow")  # plain values: images stay bytes, for `open_image` to check and decode
        self.name = name
        self.image_root = image_root

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        (row,) = self.table[index].to_pylist()
        return parse_record(row, f"{self.name}:{index + 1}", self.image_root)


def read_table(path: str, image_root: str | None) -> TableRecords:
    """Opens a parquet file, a data set that `datasets` saved to a folder, or one of the hub.

    Args:
        path: A file, or a folder or hub id, the last two with `:split` behind it if it is not `train`.
        image_root: Folder that image paths start from, if the user names one.

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
            table: Any = datasets.Dataset.from_parquet(name)
            folder = folder.parent
        elif folder.is_dir():
            table = datasets.load_from_disk(name)
        else:
            table, folder = datasets.load_dataset(name, split=split or DEFAULT_SPLIT), Path()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: `datasets` cannot read it ({' '.join(str(error).split())[:300]})") from error
    if isinstance(table, datasets.DatasetDict):
        if (split or DEFAULT_SPLIT) not in table:
            raise DataError(f"{path}: has no split {split or DEFAULT_SPLIT!r}; give {name}:SPLIT, of {sorted(table)}")
        table = table[split or DEFAULT_SPLIT]
    return TableRecords(table, path, ImageRoot(Path(image_root) if image_root else folder, bool(image_root)))
