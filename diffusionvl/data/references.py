"""What a record gives for a picture or a video: a path, a URI, or what a table stores."""

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from PIL import Image

from .record import DataError, Video, WebPicture

LONGEST_PATH = 4096
SOURCES = ("image", "path", "url", "image_url", "base64", "bytes")  # keys under which a picture may be given
VIDEO_SOURCES = ("video", "path", "url", "video_url")


@dataclass(frozen=True)
class ImageRoot:
    """The folder that image paths start from, and may not leave.

    Paths are compared as they are written: symbolic links inside the folder are followed wherever they lead, since
    clusters link their data together.

    Attributes:
        folder: The folder.
        given: Whether the user named it. Otherwise it is the records' own folder, and absolute paths may lead anywhere.
        allow_web: Whether pictures may be fetched from the web.
    """

    folder: Path
    given: bool = False
    allow_web: bool = False

    def locate(self, path: str, name: str) -> str | bytes:
        """The path of an image, or its content where the root is an archive.

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


def read_picture(value: Any, name: str, root: ImageRoot) -> str | bytes | Image.Image | WebPicture:
    """A picture as a record gives it: by its path, a URI, its bytes, or an object that holds one of them.

    Args:
        value: Such as `"a.png"`, `"data:image/png;base64,..."` or, from a table, `{"bytes": ..., "path": ...}`.
        name: The record's name, for messages.
        root: Where paths start.

    Raises:
        DataError: It is none of these, or on the web where `root` does not allow it.
    """
    while isinstance(value, dict):
        found = {key: one for key, one in value.items() if one is not None}
        if found.keys() <= {"bytes", "path"} and "bytes" in found:  # as `datasets` stores a picture
            found.pop("path", None)
        if found.get("detail") == "auto":  # of OpenAI's `image_url`
            found.pop("detail")
        if len(found) != 1 or not found.keys() <= set(SOURCES):
            raise DataError(f"{name}: an image must be given by one of {[*SOURCES]}, got {brief(value)}")
        ((key, value),) = found.items()
        if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
            return _from_base64(value, name)
    if isinstance(value, bytes | Image.Image):
        return value
    if not isinstance(value, str) or not value:
        raise DataError(f"{name}: an image must be given by its path, got {brief(value)}")
    if value.startswith("data:"):
        return _from_data_uri(value, name)
    if len(value) > LONGEST_PATH:
        raise DataError(f"{name}: an image must be given by its path, got {len(value)} letters: {brief(value)}")
    path = _local_path(value, name, "image", root.allow_web)
    return WebPicture(value) if path is None else root.locate(path, name)


def read_video(value: Any, name: str, root: ImageRoot) -> Video:
    """A video as a record gives it: by its path, or by a list of the paths of its frames.

    Raises:
        DataError: It is neither.
    """
    while isinstance(value, dict) and len(value) == 1 and value.keys() <= set(VIDEO_SOURCES):
        (value,) = value.values()
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{name}: a video must be given by its path or by a list of its frames, got {brief(value)}")
    located = tuple(str(root.locate(str(_local_path(path, name, "video")), name)) for path in paths)
    return Video(located if isinstance(value, list) else located[0])


def _local_path(value: str, name: str, kind: str, allow_web: bool = False) -> str | None:
    """The path that a path or a `file://` URI names; None for an address on the web where that is allowed."""
    scheme = value.partition(":")[0].lower() if "://" in value or value.startswith("data:") else ""
    if not scheme:
        return value
    if scheme == "file":
        return unquote(urlsplit(value).path)
    if scheme in ("http", "https") and kind == "image":
        if allow_web:
            return None
        raise DataError(
            f"{name}: image {brief(value)} is on the web; download it, or allow the web with allow_web", "image path"
        )
    raise DataError(f"{name}: {kind} {brief(value)} cannot be read from {scheme!r}; give a path", "image path")


def _from_data_uri(value: str, name: str) -> bytes:
    """The bytes in a `data:` URI."""
    head, comma, content = value.partition(",")
    if not comma:
        raise DataError(f"{name}: image {brief(value)} is a data URI without a comma; write it anew", "bad image")
    return _from_base64(content, name) if head.endswith(";base64") else unquote_to_bytes(content)


def _from_base64(content: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(unquote(content).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: image {brief(content)} is not base64 ({error}); mend it", "bad image") from error


def brief(value: Any) -> str:
    """A value, short enough for a message, however large or deep it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80
