"""What is asked of a file before it is read, so that a reader neither waits for ever nor fills the memory."""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from ..record import DataError

HUB = "hf://"
KINDS = f".jsonl, .json, .parquet, .tar or .yaml file, a folder saved by `datasets`, or {HUB}NAME for one of the hub"
MOST_YAML = 2**20  # bytes of a YAML file
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


class _Loader(yaml.SafeLoader):
    """YAML in which each key stands once, and in which 1e-5 is a number; to PyYAML only 1.0e-5 is one."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping that has each key once; YAML would take the last."""
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        DataError: It is not YAML, too large, has a key twice, or repeats whole lists or mappings by aliases, which a
            few lines may nest into more than any memory holds.
    """
    if check_regular(path) > MOST_YAML:
        raise DataError(f"{path}: has more than {MOST_YAML} bytes; give a smaller YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        _check_events(text, path)
        return yaml.load(text, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a YAML file in UTF-8") from error
    except DataError:
        raise
    except (ValueError, yaml.YAMLError) as error:  # a ValueError for a date that there is not
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: broken YAML: {reason}; mend it") from error


def _check_events(text: str, path: Path) -> None:
    """Refuses a YAML text that nests deeply, or repeats lists or mappings."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise DataError(f"{path}: nests lists and mappings more than {DEEPEST} deep; write it flat")
        if isinstance(event, yaml.CollectionStartEvent) and event.anchor is not None:
            raise DataError(f"{path}: repeats a list or mapping by the alias {event.anchor!r}; write it out")
