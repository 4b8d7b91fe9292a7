"""Writes a prompt for the processor."""

from typing import TYPE_CHECKING

from ..modeling.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature, ProcessorMixin

    from .record import Video


def encode(
    processor: "ProcessorMixin", prompt: str, images: "list[Image.Image]", videos: "list[Video] | None" = None
) -> "BatchFeature":
    """A question about images and videos as the model's inputs, these first; [1, P] tokens, as in training."""
    from .chat_template import special_tokens
    from .videos import video_inputs

    videos = videos or []
    shown = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in videos]
    for token in special_tokens(processor.tokenizer).values():
        if token in prompt:
            raise UserError(f"--prompt holds {token!r}, which the model would not read as text; take it out")
    messages = [{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    media = video_inputs(videos, text, processor, "--video")
    if images:
        media["images"] = [images]
    # The template has written every special token.
    return processor(text=[text], return_tensors="pt", add_special_tokens=False, **media)
