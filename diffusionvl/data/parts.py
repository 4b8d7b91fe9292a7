"""What a turn holds: texts, and the places of pictures and videos between them.

A place is a part such as `{"type": "image"}`, or a mark in a text: `<image>`, `<video>` or, as Qwen writes a picture
with its path, `<img>a.png</img>`. It names what it shows, or stands for the next of the record's `images` or `videos`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .record import DataError
from .references import SOURCES, VIDEO_SOURCES, brief

KINDS = ("image", "video")
# Which frames of a video are taken and how large pictures and frames are, in a part of a message: qwen-vl-utils' names.
SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
FRAME_KEYS = ("fps", "nframes", "min_frames", "max_frames", "total_pixels", "video_start", "video_end")
SETTINGS = {"image": SIZE_KEYS, "video": (*FRAME_KEYS, *SIZE_KEYS)}
# Keys under which a part may hold what it shows, and the kinds of parts that they speak of if no `type` does.
PART_SOURCES = {"image": SOURCES, "video": VIDEO_SOURCES}
TYPES = {"image": "image", "image_url": "image", "video": "video", "video_url": "video", "text": "text"}
OPENAI_TYPES = {"input_image": "image", "input_text": "text", "output_text": "text"}  # of its newer interface
MARK = re.compile(r"<img>([^<>\n]+)</img>|<(image|video)>")
# Marks of other programs, which would be trained as words, and of audio, which no model here hears.
FOREIGN_MARK = re.compile(r"</?\|?(?:image|audio)(?:[ _-]?\d+|here|_placeholder)?\s*/?\|?>|\[IMG\]", re.IGNORECASE)
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it


@dataclass(frozen=True)
class Place:
    """Where a picture or a video stands.

    Attributes:
        kind: `image` or `video`.
        source: What the place itself says it shows, if anything.
        index: Which of the record's pictures or videos it shows; the next one if left out.
        settings: How large it is shown, and which frames of a video are taken.
    """

    kind: str
    source: Any = None
    index: int | None = None
    settings: dict[str, float] = field(default_factory=dict)


Content = list[str | Place]
Key = tuple[str, str]  # a key, and what it stands in


def read_content(content: Any, name: str, unknown: list[Key]) -> Content:
    """The texts and places of a turn.

    Args:
        content: A text, a list of parts, or None for nothing.
        name: The record's name, for messages.
        unknown: Keys of parts that are not understood are added here.

    Raises:
        DataError: It is neither, or a part is of no known type.
    """
    if isinstance(content, str):
        return split_marks(content, name)
    if not isinstance(content, list | None):
        raise DataError(f"{name}: a turn's content must be text or a list of parts, got {brief(content)}")
    return [piece for part in content or () for piece in _read_part(part, name, unknown)]


def split_marks(text: str, name: str) -> Content:
    """A text, and the places that marks in it stand for.

    Raises:
        DataError: It holds half a character, or a mark that another program reads.
    """
    if not text.isascii() and SURROGATE.search(text):
        raise DataError(f"{name}: a lone surrogate, half a character, in {brief(text)}; mend the text")
    if "<" not in text and "[" not in text:
        return [text] if text else []
    found: Content = []
    end = 0
    for mark in MARK.finditer(text):
        found += [text[end : mark.start()]]
        found += [Place(mark[2]) if mark[2] else Place("image", mark[1].strip())]
        end = mark.end()
    found += [text[end:]]
    kept = [piece for piece in found if piece != ""]
    for piece in kept:
        if isinstance(piece, str) and (foreign := FOREIGN_MARK.search(piece)):
            raise DataError(
                f"{name}: {foreign[0]!r} is a mark of another program; write '<image>' where a picture stands",
                "image places",
            )
    return kept


def _read_part(part: Any, name: str, unknown: list[Key]) -> Content:
    """What one part of a list says; null counts as absent, as tables write it."""
    values = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
    said = [values.pop("type")] if "type" in values else [key for key in values if key in TYPES]
    kind = (TYPES | OPENAI_TYPES).get(said[0]) if len(said) == 1 and isinstance(said[0], str) else None
    if kind is None:
        raise DataError(f"{name}: a part must be text, an image or a video, got {brief(part)}")
    if kind == "text":
        text = values.pop("text", None)
        if not isinstance(text, str):
            raise DataError(f"{name}: a part of type text needs a text, got {brief(part)}")
        unknown += [(key, "a text part") for key in values]
        return split_marks(text, name)
    sources = {key: values.pop(key) for key in (*PART_SOURCES[kind], "index") if key in values}
    if len(sources) > 1:
        raise DataError(f"{name}: {_a(kind)} part has {' and '.join(map(repr, sources))}; keep one of them")
    index = sources.pop("index", None)
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise DataError(f"{name}: index of {_a(kind)} must be a whole number, got {brief(index)}")
    settings = {key: values.pop(key) for key in SETTINGS[kind] if key in values}
    for key, value in settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise DataError(f"{name}: {key} of {_a(kind)} must be a number from 0 on, got {brief(value)}")
    unknown += [(key, f"{_a(kind)} part") for key in values]
    return [Place(kind, sources or None, index, settings)]


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


def place_in_front(first: Content, contents: Sequence[Content], given: dict[str, list[Any]]) -> None:
    """Puts places for pictures and videos at the beginning of a content, if none of their kind is anywhere."""
    for kind in reversed(KINDS):
        if not any(places_of(contents, kind)):
            first[:0] = [Place(kind)] * len(given[kind])


def fill(contents: Sequence[Content], given: dict[str, list[Any]], name: str) -> None:
    """Gives every place of a record what it shows, in place.

    Args:
        contents: The content of each turn.
        given: The record's own pictures and videos, by kind.
        name: The record's name, for messages.

    Raises:
        DataError: There are more or fewer of them than places, or indices do not name each of them.
    """
    for kind, shown in given.items():
        order = [place.index for place in places_of(contents, kind) if place.source is None]
        if all(index is None for index in order):
            if len(order) != len(shown):
                raise DataError(
                    f"{name}: {len(shown)} {kind}(s) for {len(order)} place(s); give one for each '<{kind}>' or {kind} "
                    "part",
                    "image places",
                )
            order = [*range(len(shown))]
        elif None in order or {*order} != {*range(len(shown))}:
            raise DataError(
                f"{name}: {kind} parts show the indices {order} of {len(shown)} {kind}(s); name each of them",
                "image places",
            )
        chosen = iter([shown[index] for index in order if index is not None])
        for content in contents:
            for number, piece in enumerate(content):
                if isinstance(piece, Place) and piece.kind == kind and piece.source is None:
                    content[number] = Place(kind, next(chosen), None, piece.settings)


def places_of(contents: Sequence[Content], kind: str) -> Iterator[Place]:
    """The places of a kind, in order."""
    for content in contents:
        yield from (piece for piece in content if isinstance(piece, Place) and piece.kind == kind)
