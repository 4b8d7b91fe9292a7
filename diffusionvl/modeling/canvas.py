"""What a row is decoded on: pending clean tokens and masks after them, of which every forward runs some.

Column c of a row stands in column c of the row's cache slot. All this is Python integers: the tensors of a forward are
made from them in one piece.

Legend: A axes of a position, C columns, P prompt tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
        clean: Number of clean tokens, which come first; the others are noisy.
        end: First column that the row does not use: padding goes there.
    """

    columns: range
    ids: list[int]
    positions: list[list[int]]
    limits: list[int]
    clean: int
    end: int


class Shown(NamedTuple):
    """What a step leaves, for a film.

    Attributes:
        block: Index of the block.
        columns: The columns that it is about.
        tokens: Their tokens, the mask id where there is none.
        masked: Which of them may still change.
    """

    block: int
    columns: range
    tokens: list[int]
    masked: list[bool]


class Canvas:
    """A row of p pending clean tokens and m masks: one kind of step for every way to decode.

    Columns up to `kept` are in the cache. The clean tokens from there to `window` are pending: a forward keeps their
    keys and values. Those from `window` to `end` are noisy: they see all that comes before them and one another, and
    the next forward overwrites their keys and values. With 3 kept columns (`c`), p = 2 and m = 3::

                     c  c  c  p  p |M  M  M|
        p            x  x  x  x
        p            x  x  x  x  x
        M            x  x  x  x  x  x  x  x

    What a token sees are the columns left of its limit, so limits are the whole mask of decoding. Reading a prompt,
    committing a block, denoising, drafting and verifying differ in p and m, and in what a step does with its tokens:
    that is up to the subclasses.

    Args:
        prompt: The prompt.
        mask_token_id: The id of a token still to be written.

    Attributes:
        ids: Tokens up to `end` [C].
        kept: Columns whose clean keys and values are in the cache.
        read: Whether the cache has seen the prompt.
        window: First noisy column.
        end: First column after the noisy ones.
        block: Index of the block, or of the step where there are no blocks, from 0.
        step: Steps that this block has had; where there are no blocks, 1 if drafts are pending.
        shown: What the last step has left.
    """

    window: int
    end: int
    shown: Shown

    def __init__(self, prompt: Prompt, mask_token_id: int) -> None:
        self.prompt, self.mask_token_id = prompt, mask_token_id
        self.ids = [*prompt.ids]
        self.kept, self.read, self.block, self.step = 0, False, 0, 0

    @property
    def span(self) -> range:
        """Columns that the next step runs."""
        return range(self.kept, self.end)

    @property
    def wanted(self) -> list[int]:
        """Columns whose logits the next step reads."""
        raise NotImplementedError

    @property
    def targets(self) -> list[int]:
        """The column that each of the wanted ones predicts."""
        raise NotImplementedError

    @property
    def known(self) -> list[int]:
        """Number of tokens that are known to stand before each target."""
        raise NotImplementedError

    @property
    def quota(self) -> int:
        """Number of tokens that the next step must keep at least, where remasking decides."""
        return 0

    @property
    def written(self) -> list[int]:
        """Tokens after the answer so far that may still change, the mask id where still masked."""
        raise NotImplementedError

    @property
    def drafts(self) -> list[int]:
        """Tokens that the next step verifies."""
        return []

    @property
    def open_places(self) -> int:
        """Number of tokens that `append` takes at most."""
        raise NotImplementedError

    def columns_needed(self, new: int) -> int:
        """Columns of the row with an answer of `new` tokens."""
        raise NotImplementedError

    def see(self) -> None:
        """Notes that the cache now holds what the next step was to run."""
        raise NotImplementedError

    def write(self, tokens: list[int], keep: list[bool]) -> list[int]:
        """Writes what a step has found for its wanted columns, and moves on.

        Args:
            tokens: One for each wanted column.
            keep: Which of them remasking keeps; read where tokens are denoised.

        Returns:
            Tokens that the answer has gained for good.
        """
        raise NotImplementedError

    def append(self, tokens: list[int]) -> list[int]:
        """Writes the next tokens, which are certain without a forward, and moves on.

        Returns:
            Tokens that the answer has gained for good.
        """
        raise NotImplementedError

    def mend(self, mend: Callable[[list[int]], list[int]]) -> None:
        """Replaces the drafts by what a function makes of them, which may be fewer."""

    def run(self, columns: range) -> Run:
        """What a forward over some columns takes in."""
        prompt, known = self.prompt, len(self.prompt.ids)
        return Run(
            columns,
            self.ids[columns.start : columns.stop],
            [
                axis[columns.start : columns.stop]
                + [prompt.position(column - known) for column in range(max(columns.start, known), columns.stop)]
                for axis in prompt.positions
            ],
            [self.end if column >= self.window else self._clean_limit(column) for column in columns],
            max(self.window - columns.start, 0),
            self.end,
        )

    def _clean_limit(self, column: int) -> int:
        """First column after those that a clean token sees."""
        return self.prompt.limits[column] if column < len(self.prompt.ids) else column + 1
