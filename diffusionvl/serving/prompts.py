"""Prompts of requests as inputs of the model."""

from typing import Any

import torch

from ..data.prompts import encode
from ..data.record import Record
from .errors import ApiError
from .messages import ImagePart, Message
from .picture_cache import PictureCache, apart
from .pictures import read_picture
from .settings import ServingSettings

ROLES = {"developer": "system"}  # another name of it


def encode_chat(
    processor: Any, messages: list[Message], settings: ServingSettings, cache: PictureCache
) -> dict[str, torch.Tensor]:
    """A chat as the model's inputs; [1, P] tokens.

    Args:
        processor: Its image processor uses the cache.
        messages: The chat.
        settings: Allowed hosts, and limits.
        cache: Pictures that have been prepared before.

    Raises:
        ApiError: A picture is too large or not allowed, or there are too many.
        UserError: A text would not be read as text, a picture cannot be decoded, or the chat template refuses the chat.
    """
    contents = [message.content for message in messages]
    shown = sum(isinstance(part, ImagePart) for content in contents if isinstance(content, list) for part in content)
    known = cache if shown and apart(processor, shown) else None
    pictures = 0
    turns = []
    for number, message in enumerate(messages):
        content: list[dict[str, Any]] = []
        parts = message.content or []
        for place, part in enumerate([parts] if isinstance(parts, str) else parts):
            if isinstance(part, ImagePart):
                name = f"messages[{number}].content[{place}].image_url"
                pictures += 1
                if pictures > settings.max_images:
                    raise ApiError(413, f"a request may hold {settings.max_images} pictures", name)
                content.append({"type": "image", "image": read_picture(part.image_url.url, name, settings, known)})
            else:
                content.append({"type": "text", "text": part if isinstance(part, str) else part.text})
        turns.append({"role": ROLES.get(message.role, message.role), "content": content})
    return dict(encode(processor, [Record(turns, "messages")]))


def encode_completion(processor: Any, prompt: str | list[int]) -> dict[str, torch.Tensor]:
    """A raw text, or its ids, as the model's inputs [1, P]."""
    ids = processor.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    return {"input_ids": torch.tensor([ids], dtype=torch.long), "attention_mask": torch.ones(1, len(ids)).long()}
