"""From a record to token ids, labels and media, by the processor's own chat template.

Each turn is tokenised by itself, as decoding does it: the prompt up to and with the response's header, then the
response. The template's assistant mask is not used: with images, transformers leaves it empty.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..modeling.errors import UserError
from .chat_template import end_of_turn, response_header_ids
from .image_text import ImageText
from .images import image_size
from .media import concatenate
from .prompts import check_texts, control_tokens, named, placeholders, prepare, refused, sizing_of, write
from .record import CONVERSATION, SUPERVISIONS, DataError, Record, texts
from .streams import IGNORED
from .videos import VIDEO_GRID

SMALLEST = (28, 28)  # pixels: Qwen-VL takes none with a smaller side


@dataclass
class Piece:
    """A stretch of a conversation that truncation keeps whole or cuts at its end.

    Attributes:
        input_ids: Tokens [n].
        labels: The token itself where it carries loss, else -100 [n].
        media: Image and video inputs of this stretch.
        images: Number of images that it holds; each step in time of a video counts as one.
        is_response: Whether it is a response, end of turn included.
    """

    input_ids: Tensor
    labels: Tensor
    media: dict[str, Any] = field(default_factory=dict)
    images: int = 0
    is_response: bool = False


@dataclass
class Encoded:
    """A conversation in tokens.

    Attributes:
        input_ids: Tokens [L].
        labels: The token itself where it carries loss, else -100 [L].
        media: Image and video inputs, concatenated over the conversation.
        images: Number of images; each step in time of a video counts as one.
        truncated: Whether something was cut off.
    """

    input_ids: Tensor
    labels: Tensor
    media: dict[str, Any]
    images: int
    truncated: bool


class ConversationEncoder:
    """Turns records into tokens, labels and media, with the processor's own chat template.

    Args:
        processor: A Hugging Face processor with a chat template.
        supervision: `assistant`: responses and their end of turn carry loss. `structural` (as the reference): so do the
            headers of responses and, in every turn, the tokens that the template itself writes.
        max_length: Longest clean stream, in tokens; none if left out.

    Raises:
        UserError: `supervision` is unknown.
    """

    def __init__(self, processor: Any, supervision: str = "assistant", max_length: int | None = None) -> None:
        if supervision not in SUPERVISIONS:
            raise UserError(f"supervision must be one of {SUPERVISIONS}, got {supervision!r}")
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.supervision = supervision
        self.max_length = max_length
        self.header_ids = response_header_ids(processor)
        self.end_of_turn_id, self.closes_turns = end_of_turn(processor)
        self.end_of_turn: str = self.tokenizer.convert_ids_to_tokens(self.end_of_turn_id)
        self.placeholders = placeholders(processor)
        self._control = control_tokens(processor)
        if "image" in self.placeholders:
            self._image_text = ImageText(processor, self.placeholders["image"], self.end_of_turn)
        role_ids = self.tokenizer("assistant", add_special_tokens=False)["input_ids"]
        self.structural_ids = torch.tensor([*(set(self.header_ids) - set(role_ids)), self.end_of_turn_id])

    def encode(self, record: Record, render: bool = True) -> Encoded | None:
        """Encodes one record, or returns None if truncation leaves nothing to learn from.

        Without `render`, images are not decoded: their tokens follow from their sizes, so that a data set is measured
        in minutes. There are no media then. Videos are always read.

        Truncation drops the first prompt that does not fit and all after it, and cuts a response that does not fit. It
        never cuts inside an image.

        Raises:
            DataError: An image or a video is missing or broken, a text holds a control token, or the chat template
                cannot write the conversation, leaves a part of it out or rewrites earlier turns.
        """
        self._check(record)
        pieces = self._pieces(record, render)
        kept, truncated = self._truncate(pieces)
        if not kept:
            return None
        media: dict[str, list[Tensor]] = {}
        for piece in kept:
            for name, value in piece.media.items():
                media.setdefault(name, []).append(value)
        return Encoded(
            torch.cat([piece.input_ids for piece in kept]),
            torch.cat([piece.labels for piece in kept]),
            {name: concatenate(values) for name, values in media.items()},
            sum(piece.images for piece in kept),
            truncated,
        )

    def _check(self, record: Record) -> None:
        """Refuses what would be tokenised, but not as the record means it."""
        check_texts(record, self._control)
        if not any(message["role"] == "assistant" for message in record.messages):
            raise DataError(f"{record.name}: has no assistant turn; add one or drop the record", CONVERSATION)
        if record.messages[0]["role"] == "assistant":
            raise DataError(
                f"{record.name}: opens with an assistant turn; drop it or put a user turn in front of it", CONVERSATION
            )
        shown = named(record)
        if shown and not self.placeholders:
            raise DataError(
                f"{record.name}: holds {shown[0]}, but the model reads text alone; take images and videos out",
                CONVERSATION,
            )
        for message in record.messages:
            if message["role"] == "assistant" and (found := named(Record([message], record.name))):
                raise DataError(
                    f"{record.name}: an assistant turn holds {found[0]}; move it to a user turn", CONVERSATION
                )

    def _pieces(self, record: Record, render: bool) -> list[Piece]:
        """Prompts and responses as alternating pieces, up to the last response."""
        pieces: list[Piece] = []
        responses = [index for index, message in enumerate(record.messages) if message["role"] == "assistant"]
        whole = self._write(record, responses[-1] + 1)
        done = 0  # characters of the whole
        first = 0  # the first message of the next prompt piece
        for index in responses:
            prompt = self._write(record, index, add_generation_prompt=True)
            response = self._response(whole[len(prompt) :], index == responses[-1])
            answer = "".join(texts(record.messages[index]))
            if not whole.startswith(prompt) or response is None or answer.strip() not in response:
                raise DataError(
                    f"{record.name}: the chat template rewrites earlier turns, or puts no {self.end_of_turn!r} "
                    "after a response, so responses cannot be told apart; use a template that only appends",
                    CONVERSATION,
                )
            shown = Record(record.messages[first:index], record.name)
            pieces.append(self._prompt_piece(prompt[done:], shown, render))
            pieces.append(self._response_piece(response, record.messages[index]))
            done, first = len(prompt) + len(response), index + 1
        if self.supervision == "structural":  # the reference keeps, and supervises, what follows the last response
            tail = self._tokenize(whole[done:])
            pieces[-1].input_ids = torch.cat([pieces[-1].input_ids, tail])
            pieces[-1].labels = torch.cat([pieces[-1].labels, tail])
        return pieces

    def _write(self, record: Record, end: int, add_generation_prompt: bool = False) -> str:
        """The first `end` messages in the chat template's words."""
        return write(self.processor, replace(record, messages=record.messages[:end]), add_generation_prompt)

    def _response(self, text: str, last: bool) -> str | None:
        """The response that a text begins with, its end of turn included; None if it has none.

        After the last response, the end of turn is added if the template writes none.
        """
        if self.end_of_turn in text and (last or self.closes_turns):
            return text[: text.index(self.end_of_turn)] + self.end_of_turn
        return text + self.end_of_turn if last else None

    def _tokenize(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)

    def _prompt_piece(self, text: str, shown: Record, render: bool) -> Piece:
        """Tokenises what comes before a response, its images and videos included."""
        media: dict[str, Any] = {}
        images = len(shown.images)
        if shown.videos or (shown.images and render):
            input_ids, media = self._prepare(text, shown)
            images += int(media[VIDEO_GRID][:, 0].sum()) if shown.videos else 0
        elif shown.images:
            input_ids = self._count_images(text, shown)
        else:
            input_ids = self._tokenize(text)
        labels = torch.full_like(input_ids, IGNORED)
        if self.supervision == "structural":
            structural = torch.isin(input_ids, self.structural_ids)
            structural[len(input_ids) - len(self.header_ids) :] = True
            labels = torch.where(structural, input_ids, labels)
        return Piece(input_ids, labels, media if render else {}, images)

    def _prepare(self, text: str, shown: Record) -> tuple[Tensor, dict[str, Any]]:
        """Tokens of a text with images and videos, and their inputs."""
        inputs = prepare(self.processor, text, shown)
        ids = inputs["input_ids"]
        return ids[0].long(), {key: value for key, value in inputs.items() if value.shape != ids.shape}

    def _count_images(self, text: str, shown: Record) -> Tensor:
        """Tokens of a text with images, of which only the sizes are read."""
        sizing = sizing_of(self.processor, shown)
        sizes = [image_size(image, shown.name, sizing) for image in shown.images]
        try:
            return self._image_text.tokenize(text, sizes, final=sizing is not None)
        except ValueError as error:
            raise refused(shown, error) from error

    def smallest_image(self) -> tuple[Tensor, dict[str, Any]]:
        """Tokens and inputs of a turn with an image of `SMALLEST` pixels, which the processor may enlarge."""
        content = [{"type": "image", "image": Image.new("RGB", SMALLEST)}, {"type": "text", "text": ""}]
        shown = Record([{"role": "user", "content": content}], "smallest image")
        return self._prepare(write(self.processor, shown), shown)

    def _response_piece(self, text: str, message: dict[str, Any]) -> Piece:
        """Tokenises a response; all of it carries loss, or nothing. One that is `unfinished` has no end of turn."""
        input_ids = self._tokenize(text)
        if message.get("unfinished", False):
            input_ids = input_ids[:-1]
        labels = input_ids.clone() if message.get("supervised", True) else torch.full_like(input_ids, IGNORED)
        return Piece(input_ids, labels, is_response=True)

    def _truncate(self, pieces: list[Piece]) -> tuple[list[Piece], bool]:
        """The pieces that fit, ending in a response; and whether anything was cut."""
        if self.max_length is None or sum(len(piece.input_ids) for piece in pieces) <= self.max_length:
            return pieces, False
        kept: list[Piece] = []
        room = self.max_length
        for piece in pieces:
            if len(piece.input_ids) > room:
                if piece.is_response and room > 0:
                    kept.append(Piece(piece.input_ids[:room], piece.labels[:room], is_response=True))
                break
            kept.append(piece)
            room -= len(piece.input_ids)
        while kept and not (kept[-1].is_response and bool((kept[-1].labels != IGNORED).any())):
            kept.pop()
        return kept, True
