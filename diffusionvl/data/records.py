"""Records: what a data set says, before any tokenizer sees it.

Two layouts are read, from `.jsonl` (one record a line) or `.json` (a list):

- chat messages: `{"id", "images": [path], "messages": [{"role", "content": text or parts}]}`, a part being
  `{"type": "text", "text": ...}` or `{"type": "image"}`, optionally with its own `"image": path`;
- LLaVA: `{"id", "image": path or [paths], "conversations": [{"from": "human" or "gpt", "value": "<image>\\n..."}]}`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
IMAGE_MARK = "<image>"
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it


class DataError(ValueError):
    """A record that can not be used; the message names the place, the value and the remedy."""


@dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        messages: Chat messages; every content is a list of parts, and an image part holds its path in `image`.
        name: Where it stands (`file:line` and its id), for messages.
    """

    messages: list[dict[str, Any]]
    name: str

    @property
    def images(self) -> list[str]:
        """Paths of the images in the order of the conversation."""
        return [part["image"] for message in self.messages for part in message["content"] if part["type"] == "image"]


def read_records(paths: list[str], image_root: str | None = None) -> list[Record]:
    """Reads records from files, in order.

    Args:
        paths: `.jsonl` or `.json` files.
        image_root: Folder that relative image paths start from; the record file's own folder if left out.

    Raises:
        DataError: A file is missing, broken or empty, or a record does not have one of the two layouts.
    """
    records = []
    for path in map(Path, paths):
        root = Path(image_root) if image_root else path.parent
        found = [parse_record(raw, f"{path}:{line}", root) for line, raw in _raw_records(path)]
        if not found:
            raise DataError(f"{path}: holds no records; add some or leave the file out")
        records += found
    return records


def _raw_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line (or index in a list, from 1) and content of each record of a file."""
    if path.suffix not in (".jsonl", ".json"):
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; give a .jsonl or .json file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror}); give a .jsonl or .json file") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"{error.object[error.start]:#04x}"
        raise DataError(f"{path}:{line}: byte {byte} is not UTF-8; save the file as UTF-8") from error
    if path.suffix == ".jsonl":
        # Not `splitlines`: JSON text may hold line breaks of other kinds, such as U+2028.
        for number, content in enumerate(text.split("\n"), start=1):
            if content.strip():
                yield number, _load_json(content, path, number)
    else:
        whole = _load_json(text, path)
        if not isinstance(whole, list):
            raise DataError(f"{path}: holds {_brief(whole)}, not a list of records; put it in [ ] or name it .jsonl")
        yield from enumerate(whole, start=1)


def _load_json(text: str, path: Path, first_line: int = 1) -> Any:
    """Parses JSON, or says where it breaks."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{first_line + error.lineno - 1}"
        raise DataError(f"{place}: broken JSON at column {error.colno}: {error.msg}; mend or drop the line") from error


def parse_record(raw: Any, place: str, image_root: Path) -> Record:
    """Turns one record of either layout into chat messages.

    Args:
        raw: The parsed JSON.
        place: Where it stands, for messages.
        image_root: Folder that relative image paths start from.

    Raises:
        DataError: It has neither layout, an unknown role, or another number of images than of image places.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{place}: a record must be an object with 'messages' or 'conversations', got {_brief(raw)}")
    name = f"{place} (id {raw['id']!r})" if "id" in raw else place
    turns = _either(raw, "messages", "conversations", name)
    if not isinstance(turns, list):
        raise DataError(f"{name}: a record needs a list 'messages' or 'conversations', got {_brief(raw)}")
    paths = iter(_image_paths(_either(raw, "images", "image", name), name))
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{name}: a turn must be an object, got {_brief(turn)}")
        speaker = _either(turn, "role", "from", name)
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise DataError(f"{name}: unknown role {_brief(speaker)}; known are {sorted(ROLES)}")
        content = _parts(_either(turn, "content", "value", name), name, llava=turn.get("from") is not None)
        parts = [_parse_part(part, paths, name, image_root) for part in content]
        messages.append({"role": ROLES[speaker], "content": parts})
    surplus = len(list(paths))
    if surplus:
        raise DataError(
            f"{name}: {surplus} more image(s) than places for them; add image parts, "
            f"or {IMAGE_MARK!r} in turns that have 'from'"
        )
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{name}: has no assistant turn to learn from; add one or drop the record")
    return Record(messages, name)


def _either(raw: dict[str, Any], first: str, second: str, name: str) -> Any:
    """What stands under one of two keys, or None; null counts as absent."""
    found = [key for key in (first, second) if raw.get(key) is not None]
    if len(found) > 1:
        raise DataError(f"{name}: has both {first!r} and {second!r}; keep one of them")
    return raw[found[0]] if found else None


def _image_paths(images: Any, name: str) -> list[str]:
    """The paths under `images` or `image`: one, several or none."""
    if images is None or images == "":
        return []
    paths = [images] if isinstance(images, str) else images
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{name}: images must be a path or a list of paths, got {_brief(images)}")
    return paths


def _parts(content: Any, name: str, llava: bool) -> list[dict[str, Any]]:
    """A turn's content as parts; in LLaVA's layout `<image>` marks an image's place."""
    if isinstance(content, list):
        return content
    if not isinstance(content, str):
        raise DataError(f"{name}: a turn's content must be text or a list of parts, got {_brief(content)}")
    if not llava:
        return [{"type": "text", "text": content}]
    if content.count(IMAGE_MARK) == 1:  # LLaVA puts a single image first, wherever the mark stands
        content = f"{IMAGE_MARK}{content.replace(IMAGE_MARK, '').strip()}"
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(IMAGE_MARK)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _parse_part(part: Any, paths: Iterator[str], name: str, image_root: Path) -> dict[str, Any]:
    """Checks one part and gives an image its path."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if SURROGATE.search(part["text"]):
            raise DataError(f"{name}: a lone surrogate, half a character, in {_brief(part['text'])}; mend the text")
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        own = part.get("image")
        path = next(paths, None) if own is None else own
        if path is None:
            raise DataError(f"{name}: fewer images than places for them; add paths to 'images'")
        if not isinstance(path, str) or not path:
            raise DataError(f"{name}: an image part's 'image' must be a path, got {_brief(path)}")
        return {"type": "image", "image": str(image_root / path)}
    raise DataError(f"{name}: a part must be text or an image, got {_brief(part)}")


def _brief(value: Any) -> str:
    """A value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
