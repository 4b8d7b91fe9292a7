"""What one record says, in any of the layouts that are read, before any tokenizer sees it.

- chat messages: `{"id", "images": [image], "messages": [{"role", "content": text or parts}]}`, a part being
  `{"type": "text", "text": ...}` or `{"type": "image"}`, optionally with its own `"image"`;
- LLaMA-Factory: the same, with `<image>` in the texts of the messages where an image stands;
- LLaVA, ShareGPT: `{"id", "image": image or [images], "conversations": [{"from": "human" or "gpt", "value": ...}]}`,
  with `<image>` in the texts.

An image is a path, or, in tables and archives, the bytes of a picture file. Videos go the same ways: `"videos"`, parts
`{"type": "video"}`, `"video"`, `<video>`. A video is a path, or a list of the paths of its frames.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .record import DataError, Picture, Record, Video

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
MARKS = {"image": "<image>", "video": "<video>"}
# Which frames of a video are taken and how large they are, in its part of a message: qwen-vl-utils' names.
FRAME_KEYS = (
    *("fps", "nframes", "min_frames", "max_frames"),
    *("min_pixels", "max_pixels", "total_pixels"),
    *("video_start", "video_end"),
)
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it


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
    given = {kind: _either(raw, f"{kind}s", kind, name) for kind in MARKS}
    rest = {
        kind: iter([READERS[kind](one, name, image_root) for one in _listed(found, f"{kind}s", name)])
        for kind, found in given.items()
    }
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{name}: a turn must be an object, got {_brief(turn)}")
        speaker = _either(turn, "role", "from", name)
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise DataError(f"{name}: unknown role {_brief(speaker)}; known are {sorted(ROLES)}")
        content = _parts(_either(turn, "content", "value", name), name, turn.get("from") is not None, given)
        parts = [_parse_part(part, rest, name, image_root) for part in content]
        messages.append({"role": ROLES[speaker], "content": parts})
    for kind, left in rest.items():
        if surplus := len(list(left)):
            raise DataError(
                f"{name}: {surplus} more {kind}(s) than places for them; add {kind} parts or {MARKS[kind]!r}",
                "image places",
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


def _listed(images: Any, what: str, name: str) -> list[Any]:
    """What stands under `images` or `image`, one, several or none, as a list; or under `videos` or `video`."""
    if images is None or images == "":
        return []
    if isinstance(images, list):
        return images
    if isinstance(images, str | bytes | dict | Image.Image):
        return [images]
    raise DataError(f"{name}: {what} must be a path or a list of paths, got {_brief(images)}")


def _picture(image: Any, name: str, image_root: ImageRoot) -> Picture:
    """One image; a table of `datasets` has it as `{"bytes", "path"}`."""
    if isinstance(image, dict) and image.keys() == {"bytes", "path"}:
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if isinstance(image, bytes | Image.Image):
        return image
    if not isinstance(image, str) or not image:
        raise DataError(f"{name}: an image must be given by its path, got {_brief(image)}")
    return image_root.locate(image, name)


def _video(video: Any, name: str, image_root: ImageRoot) -> Video:
    """One video, by its path or by those of its frames."""
    paths = video if isinstance(video, list) else [video]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{name}: a video must be given by its path or by a list of its frames, got {_brief(video)}")
    found = tuple(image_root.locate(path, name) for path in paths)
    return Video(found if isinstance(video, list) else found[0])


READERS = {"image": _picture, "video": _video}


def _parts(content: Any, name: str, llava: bool, given: dict[str, Any]) -> list[dict[str, Any]]:
    """A turn's content as parts; marks in a text are places where the record gives what they stand for."""
    if isinstance(content, list):
        return content
    if not isinstance(content, str):
        raise DataError(f"{name}: a turn's content must be text or a list of parts, got {_brief(content)}")
    if llava and given["image"] is None and given["video"] is not None:  # LLaVA-Video marks videos as images
        content = content.replace(MARKS["image"], MARKS["video"])
    kinds = {mark: kind for kind, mark in MARKS.items() if given[kind] is not None or (llava and kind == "image")}
    if not kinds:
        return [{"type": "text", "text": content}]
    pieces = re.split(f"({'|'.join(kinds)})", content)
    if llava and len(pieces) == 3:  # LLaVA puts a single image first, wherever the mark stands
        before, mark, behind = pieces
        pieces = [mark, (before + behind).strip()]
    return [{"type": kinds[piece]} if piece in kinds else {"type": "text", "text": piece} for piece in pieces if piece]


def _parse_part(part: Any, rest: dict[str, Iterator[Any]], name: str, image_root: ImageRoot) -> dict[str, Any]:
    """Checks one part and gives an image or a video what it shows."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if SURROGATE.search(part["text"]):
            raise DataError(f"{name}: a lone surrogate, half a character, in {_brief(part['text'])}; mend the text")
        return {"type": "text", "text": part["text"]}
    if kind not in MARKS:
        raise DataError(f"{name}: a part must be text, an image or a video, got {_brief(part)}")
    shown = next(rest[kind], None) if part.get(kind) is None else READERS[kind](part[kind], name, image_root)
    if shown is None:
        raise DataError(f"{name}: fewer {kind}s than places for them; add paths to '{kind}s'", "image places")
    if isinstance(shown, Video):
        shown = replace(shown, settings=_frame_settings(part, name))
    return {"type": kind, kind: shown}


def _frame_settings(part: dict[str, Any], name: str) -> dict[str, float]:
    """What a video's part says of its frames; null counts as absent."""
    settings = {key: value for key, value in part.items() if key not in ("type", "video") and value is not None}
    for key, value in settings.items():
        if key not in FRAME_KEYS:
            raise DataError(f"{name}: a video's part does not know {key!r}; it knows {[*FRAME_KEYS]}")
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise DataError(f"{name}: {key} of a video must be a number from 0 on, got {_brief(value)}")
    return settings


def _brief(value: Any) -> str:
    """A value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
