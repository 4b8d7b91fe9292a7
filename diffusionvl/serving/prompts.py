"""Prompts of requests as inputs of the model."""

from typing import Any

import torch
from PIL import Image

from ..data.chat_template import special_tokens
from .errors import ApiError, bad_request
from .pictures import read_picture
from .protocol import ImagePart, Message
from .settings import ServingSettings

ROLES = {"developer": "system"}  # another name of it


def encode_chat(processor: Any, messages: list[Message], settings: ServingSettings) -> dict[str, torch.Tensor]:
    """A chat as the model's inputs; [1, P] tokens.

    Raises:
        ApiError: A picture is too large, there are too many, or a text would not be read as text.
        UserError: The model's processor refuses it.
    """
    images: list[Image.Image] = []
    special = special_tokens(processor.tokenizer).values()
    turns = []
    for number, message in enumerate(messages):
        content: list[dict[str, str]] = []
        parts = message.content or ""
        for place, part in enumerate([parts] if isinstance(parts, str) else parts):
            name = f"messages[{number}].content[{place}]"
            if isinstance(part, ImagePart):
                if len(images) == settings.max_images:
                    raise ApiError(413, f"a request may hold {settings.max_images} pictures", name)
                images.append(read_picture(part.image_url.url, f"{name}.image_url", settings))
                content.append({"type": "image"})
            else:
                text = part if isinstance(part, str) else part.text
                found = next((token for token in special if token in text), None)
                if found is not None:
                    raise bad_request(f"holds {found!r}, which the model would not read as text; take it out", name)
                content.append({"type": "text", "text": text})
        turns.append({"role": ROLES.get(message.role, message.role), "content": content})
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    media = {"images": [images]} if images else {}
    # The template has written every special token.
    return dict(processor(text=[text], return_tensors="pt", add_special_tokens=False, **media))


def encode_completion(processor: Any, prompt: str | list[int]) -> dict[str, torch.Tensor]:
    """A raw text, or its ids, as the model's inputs [1, P]."""
    ids = processor.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    return {"input_ids": torch.tensor([ids], dtype=torch.long), "attention_mask": torch.ones(1, len(ids)).long()}
