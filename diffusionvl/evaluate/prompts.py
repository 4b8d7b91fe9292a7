"""From lmms-eval's questions to prompts: messages with images, written by the checkpoint's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from diffusionvl.data.chat_template import special_tokens
from diffusionvl.data.images import open_image
from diffusionvl.modeling.processing_diffusionvl import VIDEO_REMEDY

FORMS = ("messages", "reference")
Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One question, ready for the processor.

    Attributes:
        text: By the chat template, up to and with the header of the response.
        images: In the order of their placeholders, RGB.
        question: The text of the user's turns alone, for people.
    """

    text: str
    images: list[Image.Image]
    question: str


def messages_of(context: str, visuals: Sequence[Any] | None) -> list[Message]:
    """The simple form of lmms-eval as one user turn: images first, then the text, as in training."""
    parts = [{"type": "image" if _is_image(visual) else "video", "url": visual} for visual in visuals or ()]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]


def build_prompt(
    processor: ProcessorMixin, messages: Sequence[Message], name: str, form: str = "messages", system_prompt: str = ""
) -> Prompt:
    """Writes a question with the checkpoint's own chat template.

    Args:
        processor: With a chat template.
        messages: Turns of lmms-eval; their content is a list of parts with `text`, or `image` under `url`.
        name: Of the question, for messages.
        form: `messages`: as the task has it. `reference`: one user turn as the reference's evaluation writes it, all
            images joined by spaces, a line break, then all text.
        system_prompt: Put in front of the conversation if it is not empty.

    Raises:
        ValueError: The form is unknown, a text holds a special token, or a part is a video or unknown.
    """
    if form not in FORMS:
        raise ValueError(f"prompt must be one of {FORMS}, got {form!r}")
    turns = [(message["role"], list(_parts(message, processor, name))) for message in messages]
    asked = [part for role, parts in turns if role == "user" for part in parts]
    if form == "reference":
        turns = [("user", _reference_parts(asked))]
    if system_prompt:
        turns.insert(0, ("system", [system_prompt]))
    images = [part for _, parts in turns for part in parts if isinstance(part, Image.Image)]
    written = [{"role": role, "content": [_written(part) for part in parts]} for role, parts in turns]
    text = processor.apply_chat_template(written, add_generation_prompt=True, tokenize=False)
    return Prompt(text, images, "\n".join(part for part in asked if isinstance(part, str)).strip())


def _parts(message: Message, processor: ProcessorMixin, name: str) -> list[str | Image.Image]:
    """Texts and images of one turn."""
    parts: list[str | Image.Image] = []
    content = message["content"]
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            _check_text(part["text"], processor, name)
            parts.append(part["text"])
        elif part["type"] == "image":
            parts.append(_open(part["url"], name))
        elif part["type"] == "video":
            raise ValueError(f"{name}: asks about a video, which this plugin does not read; {VIDEO_REMEDY}")
        else:
            raise ValueError(f"{name}: holds a part of type {part['type']!r}; known are text and image")
    return parts


def _check_text(text: str, processor: ProcessorMixin, name: str) -> None:
    """Refuses text that would not be read as text."""
    for token in special_tokens(processor.tokenizer).values():
        if token in text:
            raise ValueError(
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
    raise ValueError(f"{name}: an image is a {type(image).__name__}; give a PIL image or a path")


def _reference_parts(parts: Sequence[str | Image.Image]) -> list[str | Image.Image]:
    """`<image> <image>\\ntext`."""
    joined: list[str | Image.Image] = []
    for image in (part for part in parts if isinstance(part, Image.Image)):
        joined += [" ", image] if joined else [image]
    text = "".join(part for part in parts if isinstance(part, str))
    return [*joined, "\n" + text if joined else text]


def _written(part: str | Image.Image) -> dict[str, str]:
    """A part for the chat template."""
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
