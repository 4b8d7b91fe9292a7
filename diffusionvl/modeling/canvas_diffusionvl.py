"""The canvas that a row is decoded on: its prompt and the room for its answer, with a window that moves block by block.

Column c of a row stands in column c of the row's cache slot. All this is Python integers: the tensors of a forward are
made from them in one piece.

Legend: A axes of a position, C columns, n rows of a forward, T tokens of a forward, K keys, D block size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Canvas:
    """One prompt followed by mask tokens.

    A prompt of 5 tokens, D = 4 and one grid from index 0 (`p` prompt, `M` mask, `|` the first window)::

        p  p  p  p |p  M  M  M| M  M  M  M       4 prompt tokens come before the window, 1 stands in it

    What a token may see are the columns left of its `limit`: its own block and all before it. The window is the last
    block that is in a forward, so this is the whole block-diffusion mask of decoding.

    Attributes:
        ids: Tokens [C].
        position: [A][C].
        limit: First column behind each token's block [C].
        window: First column of the window.
        block_size: D.
        mask_token_id: The id of a token still to be written.
        masked: Columns of the window that are still to be written, in order.
        kept: Columns whose clean keys and values are in the cache.
    """

    ids: list[int]
    position: list[list[int]]
    limit: list[int]
    window: int
    block_size: int
    mask_token_id: int
    masked: list[int]
    kept: int = field(default=0)

    @classmethod
    def build(
        cls,
        input_ids: Tensor,
        position_ids: Tensor,
        block_ids: Tensor,
        own_blocks: bool,
        block_size: int,
        max_new_tokens: int,
        mask_token_id: int,
    ) -> "Canvas":
        """Lays out a prompt.

        Args:
            input_ids: The prompt [P].
            position_ids: [A, P].
            block_ids: Block of each prompt token [P].
            own_blocks: Whether the answer starts its own block; else it goes on in the prompt's last, unfinished one.
            block_size: D.
            max_new_tokens: Room for the answer.
            mask_token_id: The id of a token still to be written.
        """
        prompt = len(input_ids)
        window = prompt if own_blocks else prompt - prompt % block_size
        end = window + columns_needed(prompt - window, max_new_tokens, block_size)
        behind = int(position_ids.max()) + 1
        limit = torch.searchsorted(block_ids, block_ids, right=True).tolist()[:window]
        limit += [window + (place // block_size + 1) * block_size for place in range(end - window)]
        return cls(
            ids=input_ids.tolist() + [mask_token_id] * (end - prompt),
            position=[[*axis, *range(behind, behind + end - prompt)] for axis in position_ids.tolist()],
            limit=limit,
            window=window,
            block_size=block_size,
            mask_token_id=mask_token_id,
            masked=[*range(prompt, window + block_size)],
        )

    @property
    def end(self) -> int:
        """First column behind the window."""
        return self.window + self.block_size

    def write(self, column: int, token: int) -> None:
        """Writes a masked column."""
        self.ids[column] = token
        self.masked.remove(column)

    def advance(self) -> None:
        """Moves the window on to the next block."""
        self.window = self.end
        self.masked = [*range(self.window, self.end)]


def columns_needed(inside: int, max_new_tokens: int, block_size: int) -> int:
    """Columns from the first window on: whole blocks for the `inside` prompt tokens in it and the answer."""
    return -(-(inside + max_new_tokens) // block_size) * block_size


class Packed(NamedTuple):
    """Rows of a forward, each from the columns that are in the cache to an end of its own, padded on the right.

    Attributes:
        ids: [n, T].
        positions: [A, n, T].
        columns: Where each token goes in its slot [n, T].
        limits: A token sees the columns left of its limit; at least 1, so that nobody is left without a key [n, T].
        length: K, the columns that the forward spans.
        start: First column of every row, if they all have the same; else None.
        open: Whether all tokens see all columns, so that no mask is needed.
    """

    ids: Tensor
    positions: Tensor
    columns: Tensor
    limits: Tensor
    length: int
    start: int | None
    open: bool


def pack(canvases: Sequence[Canvas], ends: Sequence[int], device: torch.device) -> Packed:
    """Puts the columns from those in the cache to `ends` together, by one transfer to the device."""
    starts = [canvas.kept for canvas in canvases]
    width = max(end - start for start, end in zip(starts, ends, strict=True))
    axes = len(canvases[0].position)
    fields: list[list[list[int]]] = [[] for _ in range(3 + axes)]
    for canvas, start, end in zip(canvases, starts, ends, strict=True):
        padding = width - (end - start)
        fields[0].append(canvas.ids[start:end] + [canvas.mask_token_id] * padding)
        fields[1].append([*range(start, start + width)])
        fields[2].append(canvas.limit[start:end] + [max(end, 1)] * padding)
        for axis in range(axes):
            fields[3 + axis].append(canvas.position[axis][start:end] + [0] * padding)
    packed = torch.tensor(fields).to(device)
    length = max(starts) + width
    lowest = min(min(limits) for limits in fields[2])
    same = min(starts) == max(starts)
    return Packed(
        packed[0], packed[3:], packed[1], packed[2], length, starts[0] if same else None, open=lowest == length
    )
