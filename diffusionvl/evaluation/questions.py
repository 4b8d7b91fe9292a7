"""Turns lmms-eval's questions into conversations that `data.prompts.encode` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..data.images import open_image
from ..data.record import Record, Video
from ..modeling.errors import UserError

FORMS = ("messages", "reference")
Message = dict[str, Any]
Shown = Image.Image | Video


@dataclass(frozen=True)
class Prompt:
    """One question, ready to be encoded.

    Attributes:
        record: The turns, with images opened and videos not yet read.
        images: The images of the record, RGB.
        question: The text of the user's turns alone, for people.
    """

    record: Record
    images: list[Image.Image]
    question: str


def messages_of(context: str, visuals: Sequence[Any] | None) -> list[Message]:
    """Turns the simple form of lmms-eval into one user turn: images first, then the text, as in training."""
    parts = [{"type": "image" if _is_image(visual) else "video", "url": visual} for visual in visuals or ()]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]


def build_prompt(
    messages: Sequence[Message],
    name: str,
    form: str = "messages",
    system_prompt: str = "",
    frames: Mapping[str, float] | None = None,
) -> Prompt:
    """Lays out a question as the turns that the chat template writes.

    Args:
        messages: Turns of lmms-eval; their content is a list of parts with `text`, or an image or a video under `url`.
        name: Name of the question in error messages.
        form: `messages`: as the task has it. `reference`: one user turn as the reference's evaluation writes it: all
            images joined by spaces, a line break, then all text.
        system_prompt: Text of a system turn before the conversation, or nothing.
        frames: Which frames of a video are taken, as in `Video.settings`.

    Raises:
        UserError: The form or a part is unknown.
    """
    if form not in FORMS:
        raise UserError(f"prompt must be one of {FORMS}, got {form!r}")
    turns = [(message["role"], list(_parts(message, name, dict(frames or {})))) for message in messages]
    asked = [part for role, parts in turns if role == "user" for part in parts]
    if form == "reference":
        turns = [("user", _reference_parts(asked))]
    if system_prompt:
        turns.insert(0, ("system", [system_prompt]))
    content = [{"role": role, "content": [_as_part(one) for one in parts]} for role, parts in turns]
    images = [part for _, parts in turns for part in parts if isinstance(part, Image.Image)]
    return Prompt(Record(content, name), images, "\n".join(part for part in asked if isinstance(part, str)).strip())


def _parts(message: Message, name: str, frames: dict[str, float]) -> list[str | Shown]:
    """Lists texts, images and videos of one turn."""
    parts: list[str | Shown] = []
    content = message["content"]
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            parts.append(part["text"])
        elif part["type"] == "image":
            parts.append(_open(part["url"], name))
        elif part["type"] == "video" and isinstance(part["url"], str):
            parts.append(Video(part["url"], frames))
        elif part["type"] == "video":
            raise UserError(f"{name}: a video is a {type(part['url']).__name__}; give a path")
        else:
            raise UserError(f"{name}: holds a part of type {part['type']!r}; known are text, image and video")
    return parts


def _is_image(visual: Any) -> bool:
    """Whether a visual of lmms-eval is a picture, or the path of one."""
    if isinstance(visual, str):
        return visual.lower().endswith(tuple(Image.registered_extensions()))
    return isinstance(visual, Image.Image)


def _open(image: Any, name: str) -> Image.Image:
    """A part's image as RGB, as training opens it."""
    if isinstance(image, Image.Image | str):
        return open_image(image, name)
    raise UserError(f"{name}: an image is a {type(image).__name__}; give a PIL image or a path")


def _reference_parts(parts: Sequence[str | Shown]) -> list[str | Shown]:
    """Joins parts as `<image> <image>\\ntext`."""
    joined: list[str | Shown] = []
    for shown in (part for part in parts if not isinstance(part, str)):
        joined += [" ", shown] if joined else [shown]
    text = "".join(part for part in parts if isinstance(part, str))
    return [*joined, "\n" + text if joined else text]


def _as_part(one: str | Shown) -> dict[str, Any]:
    """Writes a text, image or video as a part of a message."""
    if isinstance(one, str):
        return {"type": "text", "text": one}
    return {"type": "video", "video": one} if isinstance(one, Video) else {"type": "image", "image": one}
