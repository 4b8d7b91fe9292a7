"""What is asked of a file before it is read, so that a reader neither waits for ever nor fills the memory."""

import stat
from pathlib import Path
from typing import Any

import yaml

from ..record import DataError

HUB = "hf://"
KINDS = f".jsonl, .json, .parquet, .tar or .yaml file, a folder saved by `datasets`, or {HUB}NAME for one of the hub"
MOST_TEXT = 2**20  # bytes of a YAML file
DEEPEST = 20  # lists and mappings in one another


def check_regular(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        DataError: It is missing, or something else than a file, such as a pipe, from which reading may never end.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # a ValueError for a null byte in its name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is not a regular file; give the path of one")
    return found.st_size


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        DataError: It is not YAML, too large, or repeats whole lists or mappings by aliases, which a few lines may
            nest into more than any memory holds.
    """
    if check_regular(path) > MOST_TEXT:
        raise DataError(f"{path}: has more than {MOST_TEXT} bytes; give a smaller YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise DataError(f"{path}: nests lists and mappings more than {DEEPEST} deep; write it flat")
            if isinstance(event, yaml.CollectionStartEvent) and event.anchor is not None:
                raise DataError(f"{path}: repeats a list or mapping by the alias {event.anchor!r}; write it out")
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: cannot be read ({reason}); give a YAML file") from error
