"""Records: what a data set says, before any tokenizer sees it.

Two layouts are read, from `.jsonl` (one record a line) or `.json` (a list):

- chat messages: `{"id", "images": [path], "messages": [{"role", "content": text or parts}]}`, a part being
  `{"type": "text", "text": ...}` or `{"type": "image"}`, optionally with its own `"image": path`;
- LLaVA: `{"id", "image": path or [paths], "conversations": [{"from": "human" or "gpt", "value": "<image>\\n..."}]}`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
IMAGE_MARK = "<image>"


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
            raise DataError(f"{path}: holds no records")
        records += found
    return records


def _raw_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line (or index in a list, from 1) and content of each record of a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror}); give a .jsonl or .json file") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield number, _load_json(line, f"{path}:{number}")
    elif path.suffix == ".json":
        whole = _load_json(text, str(path))
        if not isinstance(whole, list):
            raise DataError(f"{path}: holds a {type(whole).__name__}, not a list of records")
        yield from enumerate(whole, start=1)
    else:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; give a .jsonl or .json file")


def _load_json(text: str, place: str) -> Any:
    """Parses JSON, or says where it breaks."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
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
    if not isinstance(raw, dict) or not (isinstance(raw.get("messages", raw.get("conversations")), list)):
        raise DataError(f"{place}: a record needs a list 'messages' or 'conversations', got {_brief(raw)}")
    name = f"{place} (id {raw['id']!r})" if "id" in raw else place
    images = raw.get("images", raw.get("image")) or []
    paths = iter([images] if isinstance(images, str) else images)
    turns = raw.get("messages") or raw["conversations"]
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{name}: a turn must be an object, got {_brief(turn)}")
        speaker = turn.get("role", turn.get("from"))
        if speaker not in ROLES:
            raise DataError(f"{name}: unknown role {speaker!r}; known are {sorted(ROLES)}")
        content = turn.get("content", turn.get("value"))
        parts = [_parse_part(part, paths, name, image_root) for part in _parts(content, name, llava="from" in turn)]
        messages.append({"role": ROLES[speaker], "content": parts})
    surplus = len(list(paths))
    if surplus:
        raise DataError(f"{name}: {surplus} more image(s) than places for them; add {IMAGE_MARK!r} or an image part")
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{name}: has no assistant turn to learn from")
    return Record(messages, name)


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
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        path = part.get("image") or next(paths, None)
        if not isinstance(path, str):
            raise DataError(f"{name}: fewer images than places for them; add paths to 'images'")
        return {"type": "image", "image": str(image_root / path)}
    raise DataError(f"{name}: a part must be text or an image, got {_brief(part)}")


def _brief(value: Any) -> str:
    """A value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
