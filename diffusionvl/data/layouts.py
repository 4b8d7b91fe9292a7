"""What one record says, in any of the layouts that are read, before any tokenizer sees it.

- chat messages: `{"id", "images": [image], "messages": [{"role", "content": text or parts}]}`, a part being
  `{"type": "text", "text": ...}` or `{"type": "image"}`, optionally with its own `"image"`;
- LLaMA-Factory: the same, with `<image>` in the texts of the messages where an image stands;
- LLaVA, ShareGPT: `{"id", "image": image or [images], "conversations": [{"from": "human" or "gpt", "value": ...}]}`,
  with `<image>` in the texts.

An image is a path, or, in tables and archives, the bytes of a picture file.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
IMAGE_MARK = "<image>"
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it

Picture = str | bytes | Image.Image  # a path, a picture file's bytes, or a picture


class DataError(ValueError):
    """A record that can not be used; the message names the place, the value and the remedy.

    Args:
        message: What is wrong.
        kind: What kind of problem it is, in a word or two, for counts.
    """

    def __init__(self, message: str, kind: str = "layout") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        messages: Chat messages; every content is a list of parts, and an image part holds its picture in `image`.
        name: Where it stands (file, line and id), for messages.
    """

    messages: list[dict[str, Any]]
    name: str

    @property
    def images(self) -> list[Picture]:
        """The pictures in the order of the conversation."""
        return [part["image"] for message in self.messages for part in message["content"] if part["type"] == "image"]


class Records(Protocol):
    """Records by index, read when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Record:
        """One of them."""


@dataclass(frozen=True)
class ImageRoot:
    """The folder that image paths start from, and may not leave.

    Paths are compared as they are written: symbolic links inside the folder are followed wherever they lead, since
    clusters link their data together.

    Attributes:
        folder: The folder.
        given: Whether the user named it. Otherwise it is the records' own folder, and absolute paths may lead anywhere.
    """

    folder: Path
    given: bool = False

    def locate(self, path: str, name: str) -> str:
        """The path of an image.

        Raises:
            DataError: It leaves the folder.
        """
        found = os.path.normpath(self.folder / path)
        inside = os.path.commonpath([os.path.abspath(found), os.path.abspath(self.folder)])
        if inside != os.path.abspath(self.folder) and (self.given or not os.path.isabs(path)):
            raise DataError(
                f"{name}: image {path!r} leaves the folder {str(self.folder)!r} that image paths start from; move it, "
                "or set image_root to a folder that holds all images",
                "image path",
            )
        return found


def parse_record(raw: Any, place: str, image_root: ImageRoot) -> Record:
    """Turns one record of any layout into chat messages.

    Args:
        raw: The parsed JSON, or the row of a table.
        place: Where it stands, for messages.
        image_root: Where image paths start.

    Raises:
        DataError: It has no known layout, an unknown role, another number of images than of image places, or an
            image outside `image_root`.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{place}: a record must be an object with 'messages' or 'conversations', got {_brief(raw)}")
    name = f"{place} (id {raw['id']!r})" if raw.get("id") is not None else place
    turns = _either(raw, "messages", "conversations", name)
    if not isinstance(turns, list):
        raise DataError(f"{name}: a record needs a list 'messages' or 'conversations', got {_brief(raw)}")
    images = _either(raw, "images", "image", name)
    rest = iter([_picture(image, name, image_root) for image in _listed(images, name)])
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{name}: a turn must be an object, got {_brief(turn)}")
        speaker = _either(turn, "role", "from", name)
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise DataError(f"{name}: unknown role {_brief(speaker)}; known are {sorted(ROLES)}")
        llava = turn.get("from") is not None
        content = _parts(_either(turn, "content", "value", name), name, llava, llava or images is not None)
        parts = [_parse_part(part, rest, name, image_root) for part in content]
        messages.append({"role": ROLES[speaker], "content": parts})
    surplus = len(list(rest))
    if surplus:
        raise DataError(
            f"{name}: {surplus} more image(s) than places for them; add image parts or {IMAGE_MARK!r}", "image places"
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


def _listed(images: Any, name: str) -> list[Any]:
    """What stands under `images` or `image`, one, several or none, as a list."""
    if images is None or images == "":
        return []
    if isinstance(images, list):
        return images
    if isinstance(images, str | bytes | dict | Image.Image):
        return [images]
    raise DataError(f"{name}: images must be a path or a list of paths, got {_brief(images)}")


def _picture(image: Any, name: str, image_root: ImageRoot) -> Picture:
    """One image; a table of `datasets` has it as `{"bytes", "path"}`."""
    if isinstance(image, dict) and image.keys() == {"bytes", "path"}:
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if isinstance(image, bytes | Image.Image):
        return image
    if not isinstance(image, str) or not image:
        raise DataError(f"{name}: an image must be given by its path, got {_brief(image)}")
    return image_root.locate(image, name)


def _parts(content: Any, name: str, llava: bool, marked: bool) -> list[dict[str, Any]]:
    """A turn's content as parts; `marked` tells whether `<image>` in a text is an image's place."""
    if isinstance(content, list):
        return content
    if not isinstance(content, str):
        raise DataError(f"{name}: a turn's content must be text or a list of parts, got {_brief(content)}")
    if not marked:
        return [{"type": "text", "text": content}]
    if llava and content.count(IMAGE_MARK) == 1:  # LLaVA puts a single image first, wherever the mark stands
        content = f"{IMAGE_MARK}{content.replace(IMAGE_MARK, '').strip()}"
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(IMAGE_MARK)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _parse_part(part: Any, rest: Iterator[Picture], name: str, image_root: ImageRoot) -> dict[str, Any]:
    """Checks one part and gives an image its picture."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if SURROGATE.search(part["text"]):
            raise DataError(f"{name}: a lone surrogate, half a character, in {_brief(part['text'])}; mend the text")
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        if part.get("image") is not None:
            return {"type": "image", "image": _picture(part["image"], name, image_root)}
        picture = next(rest, None)
        if picture is None:
            raise DataError(f"{name}: fewer images than places for them; add paths to 'images'", "image places")
        return {"type": "image", "image": picture}
    raise DataError(f"{name}: a part must be text or an image, got {_brief(part)}")


def _brief(value: Any) -> str:
    """A value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
