"""Writes prompts: from messages to a model's inputs, in one place for training and for every way of answering.

Legend: B conversations, P tokens of the longest prompt.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchFeature

from .chat_template import special_tokens
from .image_text import IMAGE_GRID
from .images import Sizing, name_of, open_image
from .media import concatenate
from .parts import fill, place_in_front, split_marks
from .record import CONVERSATION, DataError, Record, SizedPicture, strings, texts
from .videos import video_inputs

PLACES = {"image": "image_token", "video": "video_token"}  # what a processor calls its placeholder of each kind


def encode(processor: Any, records: Sequence[Record]) -> BatchFeature:
    """Prepares conversations that wait for a response, as training prepares them.

    Each is prepared by itself, so that neither its tokens nor its pictures depend on the others of the batch; they
    may have pictures, videos, both or neither.

    Args:
        processor: A Hugging Face processor with a chat template.
        records: B conversations; they end with the turn to be answered.

    Returns:
        `input_ids`, `attention_mask` and token types [B, P], padded on the left, and the media inputs, concatenated in
        the order of the records.

    Raises:
        DataError: A text holds a control token, a picture or a video cannot be read, or the chat template cannot write
            the conversation or leaves a part of it out.
    """
    control = control_tokens(processor)
    rows = []
    for record in records:
        check_texts(record, control)
        rows.append(prepare(processor, write(processor, record, add_generation_prompt=True), record))
    return pad_left(rows, processor.tokenizer.pad_token_id or 0)


def placeholders(processor: Any) -> dict[str, str]:
    """What the chat template writes for an image and for a video; a family names only what it reads."""
    found = {kind: getattr(processor, name, None) for kind, name in PLACES.items()}
    return {kind: token for kind, token in found.items() if token is not None}


def control_tokens(processor: Any) -> re.Pattern[str]:
    """A pattern of the tokens that a text must not hold, since the model would not read them as text.

    They are the tokenizer's special tokens and the placeholders of images and videos.
    """
    tokens = {*special_tokens(processor.tokenizer).values(), *placeholders(processor).values()}
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def check_texts(record: Record, control: re.Pattern[str]) -> None:
    """Checks that every text of a record is read as text.

    Args:
        record: A conversation.
        control: What `control_tokens` gave.

    Raises:
        DataError: A text holds a control token.
    """
    for said in [*("".join(texts(message)) for message in record.messages), *strings([*_calls(record)])]:
        if found := control.search(said):
            raise DataError(
                f"{record.name}: the text of a turn holds {found[0]!r}, which the model would read as a control token "
                "and not as text; take it out",
                CONVERSATION,
            )


def _calls(record: Record) -> Iterator[Any]:
    """What a record says beside the texts of its turns: tools, calls of them, and reasoning."""
    yield record.tools or []
    for message in record.messages:
        yield [call["function"] for call in message.get("tool_calls", [])]
        yield message.get("reasoning_content", "")


def write(processor: Any, record: Record, add_generation_prompt: bool = False) -> str:
    """Writes a conversation with the processor's chat template.

    Args:
        processor: A Hugging Face processor with a chat template.
        record: A conversation.
        add_generation_prompt: Whether the header of a response follows.

    Raises:
        DataError: The template refuses the conversation, or leaves out one of its texts or pictures.
    """
    extra = {} if record.tools is None else {"tools": record.tools}
    try:
        text: str = processor.apply_chat_template(
            record.messages, tokenize=False, add_generation_prompt=add_generation_prompt, **extra
        )
    except TemplateError as error:  # templates raise it for an order of roles that they do not know
        raise DataError(
            f"{record.name}: the chat template refuses the conversation: {error}; change its turns", CONVERSATION
        ) from error
    _check_written(text, record)
    place = placeholders(processor).get("image")
    if place is not None and text.count(place) != len(record.images):
        raise DataError(
            f"{record.name}: the chat template writes {text.count(place)} places for {len(record.images)} image(s); "
            "mend it",
            CONVERSATION,
        )
    return text


def _check_written(text: str, record: Record) -> None:
    """Checks that a chat template has written every text of a record, those of the turns in their order."""
    lost, end = None, 0
    for said in (said.strip() for message in record.messages for said in texts(message)):
        begin = text.find(said, end)
        if begin < 0:
            lost = said
            break
        end = begin + len(said)
    named = [tool.get("function", tool) for tool in record.tools or [] if isinstance(tool, dict)]
    said_of_tools = [tool[key] for tool in named for key in ("name", "description") if key in tool]
    for said in strings([*_calls(replace(record, tools=None)), said_of_tools]):
        if said.strip() not in text and json.dumps(said, ensure_ascii=False)[1:-1] not in text:
            lost = said
    if lost is not None:
        raise DataError(
            f"{record.name}: the chat template leaves out or changes the text {lost[:60]!r}; mend the template or "
            "take the text out",
            CONVERSATION,
        )


def sizing_of(processor: Any, record: Record) -> Sizing | None:
    """How the processor sizes pictures, if the record says of any how large it is.

    Raises:
        DataError: It does, but the processor is not of a family whose pictures have sizes of their own.
    """
    if not any(isinstance(image, SizedPicture) for image in record.images):
        return None
    images = getattr(processor, "image_processor", None)
    if images is None or IMAGE_GRID not in images.model_input_names:
        raise DataError(
            f"{record.name}: says how large a picture is, which Qwen-VL families alone can follow; take min_pixels, "
            "max_pixels, resized_height and resized_width out",
            "bad image",
        )
    return Sizing(images.patch_size * images.merge_size, images.size["shortest_edge"], images.size["longest_edge"])


def prepare(processor: Any, text: str, record: Record) -> BatchFeature:
    """Tokenises a written text, with the images and videos that a record shows in it.

    Args:
        processor: A Hugging Face processor.
        text: What the chat template wrote, special tokens included.
        record: Its images and videos are those of the text.

    Returns:
        Tokens [1, P], and the media inputs.

    Raises:
        DataError: An image or a video cannot be read, or the processor refuses it.
    """
    media = video_inputs(record.videos, text, processor, record.name)
    if record.images:
        sizing = sizing_of(processor, record)
        media["images"] = [[open_image(image, record.name, sizing) for image in record.images]]
        if sizing is not None:
            media["do_resize"] = False  # they have their sizes
    try:
        # The template has written every special token.
        return processor(text=[text], return_tensors="pt", add_special_tokens=False, **media)
    except ValueError as error:  # such as an image that is far longer than wide
        raise refused(record, error) from error


def refused(record: Record, error: Exception) -> DataError:
    """The error for images or videos that open, but that the processor refuses."""
    what = ", ".join(named(record))
    return DataError(f"{record.name}: the processor refuses {what}: {error}; change or drop the record", "bad image")


def named(record: Record) -> list[str]:
    """Images and videos of a record as a message names them."""
    return [f"image {name_of(image)}" for image in record.images] + [str(video) for video in record.videos]


def question(text: str, images: Sequence[Any] = (), videos: Sequence[Any] = (), name: str = "the prompt") -> Record:
    """A question about images and videos as a record of one turn.

    They stand in the places of `<image>` and `<video>` in the text; without such marks, in front of it.

    Args:
        text: The question.
        images: Each a path, the bytes of a picture file or a picture.
        videos: Each a `Video`.
        name: What messages call the question.

    Raises:
        DataError: There are marks, but more or fewer than images or videos.
    """
    content = split_marks(text, name)
    given: dict[str, list[Any]] = {"image": [*images], "video": [*videos]}
    place_in_front(content, [content], given)
    fill([content], given, name)
    parts = [
        {"type": "text", "text": piece} if isinstance(piece, str) else {"type": piece.kind, piece.kind: piece.source}
        for piece in content
    ]
    return Record([{"role": "user", "content": parts}], name)


def pad_left(rows: list[BatchFeature], pad_id: int) -> BatchFeature:
    """Joins prepared prompts: what has a value a token is padded on the left, media are concatenated."""
    ids = [row["input_ids"] for row in rows]
    width = max(own.shape[1] for own in ids)
    batch = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if all(row[name].shape == row["input_ids"].shape for row in rows if name in row):
            # Token types may be missing in rows without images; zeros mean text.
            whole = [row.get(name, torch.zeros_like(own)) for row, own in zip(rows, ids, strict=True)]
            fill_id = pad_id if name == "input_ids" else 0
            values = [torch.nn.functional.pad(own, (width - own.shape[1], 0), value=fill_id) for own in whole]
        batch[name] = concatenate(values)
    return BatchFeature(batch)
