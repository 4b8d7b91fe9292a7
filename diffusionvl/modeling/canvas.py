"""The canvas that a row is decoded on: its prompt and the room for its answer, with a window that moves block by block.

Column c of a row stands in column c of the row's cache slot. All this is Python integers: the tensors of a forward are
made from them in one piece.

Legend: A axes of a position, C columns, n rows of a forward, T tokens of a forward, K keys, D block size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .remasking import transfer_schedule


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
        quotas: Tokens that each step of a sub-block must keep at least; their number is its steps.
        sub_block_size: Tokens that are denoised together; D unless decoding is approximate.
        sub_block: First column of the sub-block that is being denoised.
        step: Steps that this sub-block has had.
        kept: Columns whose clean keys and values are in the cache.
        fresh: Whether the cache has seen the whole window since this sub-block began.
    """

    ids: list[int]
    position: list[list[int]]
    limit: list[int]
    window: int
    block_size: int
    mask_token_id: int
    masked: list[int]
    quotas: list[int]
    sub_block_size: int
    sub_block: int
    step: int = 0
    kept: int = 0
    fresh: bool = False

    @classmethod
    def build(
        cls,
        input_ids: Tensor,
        position_ids: Tensor,
        block_ids: Tensor,
        own_blocks: bool,
        block_size: int,
        mask_token_id: int,
        max_new_tokens: int,
        denoising_steps: int,
        sub_block_size: int,
    ) -> "Canvas":
        """Lays out a prompt.

        Args:
            input_ids: The prompt [P].
            position_ids: [A, P].
            block_ids: Block of each prompt token [P].
            own_blocks: Whether the answer starts its own block; else it goes on in the prompt's last, unfinished one.
            block_size: D.
            mask_token_id: The id of a token still to be written.
            max_new_tokens: Room for the answer.
            denoising_steps: S, steps a block; a sub-block has its share of them.
            sub_block_size: A divisor of D.
        """
        prompt = len(input_ids)
        window, end = lay_out(prompt, own_blocks, max_new_tokens, block_size)
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
            quotas=transfer_schedule(sub_block_size, -(-denoising_steps * sub_block_size // block_size)),
            sub_block_size=sub_block_size,
            sub_block=window,
        )._skip_to_masked()

    @property
    def end(self) -> int:
        """First column behind the window."""
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
    def quota(self) -> int:
        """Tokens that the next step must keep at least."""
        return self.quotas[self.step]

    def write(self, tokens: dict[int, int]) -> None:
        """Writes what a step has kept, by column, and moves on in the window."""
        for column, token in tokens.items():
            self.ids[column] = token
            self.masked.remove(column)
        self.step += 1
        self._skip_to_masked()

    def advance(self) -> None:
        """Moves the window on to the next block."""
        self.window = self.sub_block = self.end
        self.masked = [*range(self.window, self.end)]
        self.step, self.fresh = 0, False

    def _skip_to_masked(self) -> "Canvas":
        """Moves on to the first sub-block that is not all written, if there is one."""
        while self.masked and not self.wanted:
            self.sub_block += self.sub_block_size
            self.step, self.fresh = 0, False
        return self


def lay_out(prompt: int, own_blocks: bool, max_new_tokens: int, block_size: int) -> tuple[int, int]:
    """Where the first window behind so many prompt tokens begins, and where the last one ends.

    >>> lay_out(5, False, 7, 4), lay_out(5, True, 7, 4)
    ((4, 12), (5, 13))
    """
    window = prompt if own_blocks else prompt - prompt % block_size
    return window, window - (window - prompt - max_new_tokens) // block_size * block_size
