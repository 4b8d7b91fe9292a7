"""From lmms-eval's questions to prompts: messages with images, written by the checkpoint's chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from ..data.chat_template import special_tokens
from ..data.images import open_image
from ..data.record import Video
from ..modeling.errors import UserError

FORMS = ("messages", "reference")
Message = dict[str, Any]
Shown = Image.Image | Video


@dataclass(frozen=True)
class Prompt:
    """One question, ready for the processor.

    Attributes:
        name: Of the question, for messages.
        text: By the chat template, up to and with the header of the response.
        images: In the order of their placeholders, RGB.
        videos: In the order of their placeholders, not yet read.
        question: The text of the user's turns alone, for people.
    """

    name: str
    text: str
    images: list[Image.Image]
    videos: list[Video]
    question: str


def messages_of(context: str, visuals: Sequence[Any] | None) -> list[Message]:
    """The simple form of lmms-eval as one user turn: images first, then the text, as in training."""
    parts = [{"type": "image" if _is_image(visual) else "video", "url": visual} for visual in visuals or ()]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]


def build_prompt(
    processor: ProcessorMixin,
    messages: Sequence[Message],
    name: str,
    form: str = "messages",
    system_prompt: str = "",
    frames: Mapping[str, float] | None = None,
) -> Prompt:
    """Writes a question with the checkpoint's own chat template.

    Args:
        processor: With a chat template.
        messages: Turns of lmms-eval; their content is a list of parts with `text`, or an image or a video under `url`.
        name: Of the question, for messages.
        form: `messages`: as the task has it. `reference`: one user turn as the reference's evaluation writes it, all
            images joined by spaces, a line break, then all text.
        system_prompt: Put in front of the conversation if it is not empty.
        frames: Which frames of a video are taken, as `Video.settings`.

    Raises:
        UserError: The form is unknown, a text holds a special token, or a part is unknown.
    """
    if form not in FORMS:
        raise UserError(f"prompt must be one of {FORMS}, got {form!r}")
    turns = [(message["role"], list(_parts(message, processor, name, dict(frames or {})))) for message in messages]
    asked = [part for role, parts in turns if role == "user" for part in parts]
    if form == "reference":
        turns = [("user", _reference_parts(asked))]
    if system_prompt:
        turns.insert(0, ("system", [system_prompt]))
    images = [part for _, parts in turns for part in parts if isinstance(part, Image.Image)]
    written = [{"role": role, "content": [_written(part) for part in parts]} for role, parts in turns]
    text = processor.apply_chat_template(written, add_generation_prompt=True, tokenize=False)
    videos = [part for _, parts in turns for part in parts if isinstance(part, Video)]
    return Prompt(name, text, images, videos, "\n".join(part for part in asked if isinstance(part, str)).strip())


def _parts(message: Message, processor: ProcessorMixin, name: str, frames: dict[str, float]) -> list[str | Shown]:
    """Texts, images and videos of one turn."""
    parts: list[str | Shown] = []
    content = message["content"]
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            _check_text(part["text"], processor, name)
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


def _check_text(text: str, processor: ProcessorMixin, name: str) -> None:
    """Refuses text that would not be read as text."""
    for token in special_tokens(processor.tokenizer).values():
        if token in text:
            raise UserError(
                f"{name}: the text of a turn holds {token!r}, which would not be read as text; mend the task"
            )


def _is_image(visual: Any) -> bool:
    """Whether a visual of lmms-eval is a picture, or the path of one."""
    if isinstance(visual, str):
        return visual.lower().endswith(tuple(Image.registered_extensions()))
    return isinstance(visual, Image.Image)


def _open(image: Any, name: str) -> Image.Image:
    """A part's image as RGB."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str):
        return open_image(image, name)
    raise UserError(f"{name}: an image is a {type(image).__name__}; give a PIL image or a path")


def _reference_parts(parts: Sequence[str | Shown]) -> list[str | Shown]:
    """`<image> <image>\\ntext`."""
    joined: list[str | Shown] = []
    for shown in (part for part in parts if not isinstance(part, str)):
        joined += [" ", shown] if joined else [shown]
    text = "".join(part for part in parts if isinstance(part, str))
    return [*joined, "\n" + text if joined else text]


def _written(part: str | Shown) -> dict[str, str]:
    """A part for the chat template."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, Video) else "image"}
