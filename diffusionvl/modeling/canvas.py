"""The canvas that a row is decoded on: its prompt, its answer so far, and a window of masked tokens after them.

Column c of a row stands in column c of the row's cache slot. All this is Python integers: the tensors of a forward are
made from them in one piece.

Legend: A axes of a position, C columns, P prompt tokens, D block size.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .remasking import transfer_schedule


@dataclass
class Prompt:
    """One prompt, and what follows from it for the answer.

    Attributes:
        ids: Tokens [P].
        positions: [A][P].
        limits: First column after those that each clean token sees [P].
        own_blocks: Whether the answer starts its own block; otherwise it goes on in the prompt's last, unfinished one.
        causal: Whether a clean token of the answer sees none after it; otherwise it sees its whole block.
        most_positions: Number of positions that the model has; None without a limit.
    """

    ids: list[int]
    positions: list[list[int]]
    limits: list[int]
    own_blocks: bool
    causal: bool
    most_positions: int | None = None

    def __post_init__(self) -> None:
        self._next = 1 + max(map(max, self.positions))

    @property
    def room(self) -> int | None:
        """Number of positions that are left for the answer; None without a limit."""
        return None if self.most_positions is None else self.most_positions - self._next

    def position(self, place: int) -> int:
        """Position of a place of the answer, from 0; masks after the last position share it, and are never kept."""
        return self._next + (place if self.room is None else min(place, self.room - 1))

    @classmethod
    def build(
        cls,
        input_ids: Tensor,
        position_ids: Tensor,
        clean_blocks: Tensor,
        own_blocks: bool,
        causal: bool,
        most_positions: int | None = None,
    ) -> "Prompt":
        """A prompt [P], with positions [A, P] and blocks as the mask numbers them [P]."""
        limits = torch.searchsorted(clean_blocks, clean_blocks, right=True)
        return cls(input_ids.tolist(), position_ids.tolist(), limits.tolist(), own_blocks, causal, most_positions)


class Run(NamedTuple):
    """Some columns of one row, for a forward.

    Attributes:
        columns: The T columns.
        ids: [T].
        positions: [A][T].
        limits: First column after those that each token sees [T].
        end: First column that the row does not use: padding goes there.
    """

    columns: range
    ids: list[int]
    positions: list[list[int]]
    limits: list[int]
    end: int


@dataclass
class Canvas:
    """A prompt followed by a window of D tokens, which moves on block by block.

    A prompt of 5 tokens, D = 4 and one grid from index 0 (`p` prompt, `M` mask, `|` the first window)::

        p  p  p  p |p  M  M  M|       4 prompt tokens come before the window, 1 stands in it

    The tokens from `kept` to `window` are clean and pending: the next forward writes their keys and values to the
    cache. Those of the window are noisy: the forward after it overwrites them. What a token may see are the columns
    left of its limit, and the window is the last block of a forward, so limits are the whole mask of decoding.

    Attributes:
        prompt: The prompt.
        block_size: D.
        mask_token_id: The id of a token still to be written.
        sub_block_size: Tokens that are denoised together; D unless decoding is approximate.
        schedule: Tokens that each step of a sub-block must keep at least.
        ids: Tokens up to the end of the window [C].
        window: First column of the window.
        masked: Columns of the window that are still to be written, in order.
        sub_block: First column of the sub-block that is being denoised.
        due: What is left of the schedule in this sub-block.
        block: Index of the window, from 0.
        step: Steps that this block has had.
        kept: Columns whose clean keys and values are in the cache.
        fresh: Whether the cache has seen the whole window since this sub-block began.
        read: Whether the cache has seen the prompt.
    """

    prompt: Prompt
    block_size: int
    mask_token_id: int
    sub_block_size: int
    schedule: list[int]
    ids: list[int] = field(init=False)
    window: int = field(init=False)
    masked: list[int] = field(init=False)
    sub_block: int = field(init=False)
    due: list[int] = field(init=False)
    block: int = 0
    step: int = 0
    kept: int = 0
    fresh: bool = False
    read: bool = False

    def __post_init__(self) -> None:
        length = len(self.prompt.ids)
        self.first = length if self.prompt.own_blocks else length - length % self.block_size
        self.ids = [*self.prompt.ids]
        self._open(self.first)

    @classmethod
    def build(
        cls, prompt: Prompt, block_size: int, mask_token_id: int, denoising_steps: int, sub_block_size: int
    ) -> "Canvas":
        """Lays out a prompt; a sub-block has its share of the S steps of a block."""
        steps = -(-denoising_steps * sub_block_size // block_size)
        return cls(prompt, block_size, mask_token_id, sub_block_size, transfer_schedule(sub_block_size, steps))

    @property
    def end(self) -> int:
        """First column after the window."""
        return self.window + self.block_size

    @property
    def span(self) -> range:
        """Columns that the next step runs: the sub-block, or all that the cache has not seen as it is now."""
        if self.fresh:
            return range(self.sub_block, self.sub_block + self.sub_block_size)
        return range(self.kept, self.end)

    @property
    def wanted(self) -> list[int]:
        """Columns that the next step draws tokens for: the masked ones of the sub-block."""
        return [column for column in self.masked if column < self.sub_block + self.sub_block_size]

    @property
    def written(self) -> list[int]:
        """Tokens of the answer in the window, the mask id where still masked."""
        return self.ids[max(self.window, len(self.prompt.ids)) : self.end]

    def positions(self, axis: int, columns: range) -> list[int]:
        """Positions of columns on one axis; after the prompt they go on from its largest one."""
        known = self.prompt.positions[axis][columns.start : columns.stop]
        return known + [self.prompt.position(column - len(self.prompt.ids)) for column in columns[len(known) :]]

    def run(self, columns: range) -> Run:
        """What a forward over some columns takes in."""
        axes = range(len(self.prompt.positions))
        return Run(
            columns,
            self.ids[columns.start : columns.stop],
            [self.positions(axis, columns) for axis in axes],
            [self._limit(column) for column in columns],
            self.end,
        )

    def _limit(self, column: int) -> int:
        if column >= self.window:
            return self.end
        if column < self.first:
            return self.prompt.limits[column]
        if self.prompt.causal:
            return column + 1
        return column + self.block_size - (column - self.first) % self.block_size

    def see(self) -> None:
        """Notes that the cache now holds the clean tokens before the window, and the window as it was run."""
        self.kept, self.fresh, self.read = self.window, True, True

    def write(self, tokens: list[int], keep: list[bool]) -> list[int]:
        """Writes what a step has kept of the tokens that it drew for the `wanted` columns, and moves on.

        Returns:
            The finished block without the prompt's tokens, or nothing while the block goes on.
        """
        for column, token, kept in zip(self.wanted, tokens, keep, strict=True):
            if kept:
                self.ids[column] = token
                self.masked.remove(column)
        self.step += 1
        self.due.pop(0)
        self._skip_to_masked()
        if self.masked:
            return []
        block = self.written
        self.block += 1
        self._open(self.end)
        return block

    def _open(self, window: int) -> None:
        """Moves the window to a column and fills it with masks."""
        self.window = self.sub_block = window
        self.masked = [*range(max(window, len(self.prompt.ids)), self.end)]
        self.ids += [self.mask_token_id] * (self.end - len(self.ids))
        self.step, self.fresh, self.due = 0, False, [*self.schedule]
        self._skip_to_masked()

    def _skip_to_masked(self) -> None:
        """Moves on to the first sub-block that is not all written, if there is one."""
        while self.masked and not self.wanted:
            self.sub_block += self.sub_block_size
            self.fresh, self.due = False, [*self.schedule]


def columns_needed(prompt: int, own_blocks: bool, max_new_tokens: int, block_size: int) -> int:
    """Columns of a row, given the tokens of its prompt and of its longest answer: whole blocks.

    >>> columns_needed(5, False, 7, 4), columns_needed(5, True, 7, 4)
    (12, 13)
    """
    first = prompt if own_blocks else prompt - prompt % block_size
    blocks = -(-(prompt - first + max_new_tokens) // block_size)
    return first + blocks * block_size
