"""Keys and values of rows that have ended, kept for later prompts that begin in the same way.

Legend: A axes of a position, C columns, H heads, d head size.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arrivals import Arrival
from .batch import DecodingBatch
from .canvas import Canvas
from .families import media_by_image, placeholder_ids


class Shown(NamedTuple):
    """Columns of a row that stand for an image or a video, or for several that a model takes in one piece.

    Attributes:
        first: The first of them.
        end: First column after them.
        key: A digest of what they show.
    """

    first: int
    end: int
    key: bytes


@dataclass(eq=False)
class KeptRow:
    """The beginning of a row that has ended.

    Attributes:
        facts: Token, limit and positions of each column: all that its keys and values depend on, but for what its
            images and videos show [2 + A, C].
        pictures: These images and videos.
        layers: Keys and values of each layer [H, C, d], by the layer's index.
    """

    facts: Tensor
    pictures: list[Shown]
    layers: dict[int, tuple[Tensor, Tensor]]

    @property
    def length(self) -> int:
        """C."""
        return self.facts.shape[1]

    def common(self, facts: Tensor, pictures: list[Shown]) -> int:
        """Number of columns with which another row begins like this one."""
        same = common(self.facts, facts)
        for picture in pictures:
            if picture.first < same and (picture.end > same or picture not in self.pictures):
                return picture.first
        return same


class PrefixCache:
    """Rows that have ended, the least recently used first; a new row begins with a copy of the longest that fits.

    It is exact: a column is used again only if its token, its positions, what it may see and what is shown to it are
    the same, and if that holds for every column that it may see.

    Args:
        batch: The rows that are being decoded.
        max_tokens: Largest number of columns that are kept; 0 keeps none.
    """

    def __init__(self, batch: DecodingBatch, max_tokens: int) -> None:
        self._batch, self._max_tokens = batch, max_tokens
        self._placeholders = set(placeholder_ids(batch.model.base.config))
        self._rows: list[KeptRow] = []

    @property
    def tokens(self) -> int:
        """Number of columns that are kept."""
        return sum(row.length for row in self._rows)

    def begin(self, arrival: Arrival) -> None:
        """Copies what is kept into the slots of requests that are about to be read, after all other rows have run.

        The images and videos that they stand for are then no longer needed.
        """
        if not self._max_tokens or not arrival.cached:
            return
        for request in arrival.requests:
            if request.pictures is not None:
                continue  # it has begun, in a step that failed before it was read
            if arrival.media and (len(arrival.requests) > 1 or self._batch.placeholders_in_windows(arrival.requests)):
                continue  # their images and videos cannot be told apart, or are read in every step
            canvas = request.canvas
            media = self._by_picture(canvas, arrival.media)
            request.pictures = [*media]
            kept, length = self._longest(canvas, request.pictures)
            if kept is None:
                continue
            self._rows.remove(kept)
            self._rows.append(kept)
            self._batch.cache.put(self._batch.requests.index(request), kept.layers, length)
            canvas.kept = request.reused = length
            left = [own for picture, own in media.items() if picture.end > length]
            if len(left) < len(media):
                arrival.media = {name: torch.cat([own[name] for own in left]) for name in (left[0] if left else ())}

    def _by_picture(self, canvas: Canvas, media: dict[str, Any]) -> dict[Shown, dict[str, Any]]:
        """What a row shows, in order, and the inputs for each."""
        columns = [column for column, token in enumerate(canvas.prompt.ids) if token in self._placeholders]
        found, begin = {}, 0
        for count, own in media_by_image(media, len(columns)) if columns else []:
            picture = Shown(columns[begin], columns[begin + count - 1] + 1, digest(own))
            found[picture] = own
            begin += count
        return found

    def _longest(self, canvas: Canvas, pictures: list[Shown]) -> tuple[KeptRow | None, int]:
        """The row that has most columns of a new one, which shows these pictures, and the number of them."""
        # The last token is read again: what comes after it is predicted there.
        facts = facts_of(canvas, min(canvas.window, len(canvas.prompt.ids) - 1))
        seen = facts[1].cummax(0).values if facts.shape[1] else facts[1]
        closed = seen <= torch.arange(1, facts.shape[1] + 1)  # nothing up to here sees what comes after
        for picture in pictures:
            closed[picture.first : picture.end - 1] = False  # a picture is taken whole
        best, longest = None, 0
        for row in self._rows:
            ends = closed[: row.common(facts, pictures)].nonzero()
            length = int(ends[-1]) + 1 if len(ends) else 0
            if length > longest:
                best, longest = row, length
        return best, longest

    def keep(self, slot: int) -> None:
        """Keeps the clean columns of a row that has ended and is about to be removed."""
        request = self._batch.requests[slot]
        canvas, reason, pictures = request.canvas, request.finish_reason, request.pictures
        length = canvas.kept
        if not 0 < length <= self._max_tokens or pictures is None or not canvas.read:
            return
        if reason in ("error", "not_a_number"):
            return
        facts = facts_of(canvas, length)
        for row in [*self._rows]:
            same = row.common(facts, pictures)
            if same in (row.length, length):
                self._rows.remove(row)
                if same == length:  # all of it is there
                    self._rows.append(row)
                    return
        layers = {
            index: (layer.keys[slot, :, :length].clone(), layer.values[slot, :, :length].clone())
            for index, layer in self._batch.cache.by_index.items()
        }
        self._rows.append(KeptRow(facts, pictures, layers))
        while self.tokens > self._max_tokens:
            self._rows.pop(0)


def facts_of(canvas: Canvas, length: int) -> Tensor:
    """Token, limit and positions of a row's first, clean columns [2 + A, C]."""
    run = canvas.run(range(length))
    return torch.tensor([run.ids, run.limits, *run.positions], dtype=torch.long)


def common(first: Tensor, second: Tensor) -> int:
    """Number of columns with which two rows begin alike."""
    length = min(first.shape[1], second.shape[1])
    differ = (first[:, :length] != second[:, :length]).any(0).nonzero()
    return int(differ[0]) if len(differ) else length


def digest(media: dict[str, Any]) -> bytes:
    """A digest of image and video inputs, which differs for different ones."""
    found = hashlib.blake2b(digest_size=32)
    for name in sorted(media):
        value = media[name]
        found.update(f"{name} {getattr(value, 'shape', '')} {getattr(value, 'dtype', '')}".encode())
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        else:
            found.update(repr(value).encode())
    return found.digest()
