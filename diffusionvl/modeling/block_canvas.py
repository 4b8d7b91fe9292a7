"""Denoising: the masks of a row are a block, which steps fill in any order; then it is clean, and the next one opens.

Legend: C columns, P prompt tokens, D block size.
"""

from .canvas import Canvas, Prompt, Shown
from .remasking import transfer_schedule


class BlockCanvas(Canvas):
    """A prompt followed by a window of D tokens, which moves on block by block.

    A prompt of 5 tokens, D = 4 and one grid from index 0 (`p` prompt, `M` mask, `|` the first window)::

        p  p  p  p |p  M  M  M|       4 prompt tokens come before the window, 1 stands in it

    Args:
        prompt: The prompt.
        mask_token_id: The id of a token still to be written.
        block_size: D.
        denoising_steps: S, the number of steps of a block; a sub-block has its share of them.
        sub_block_size: Tokens that are denoised together; D unless decoding is approximate.

    Attributes:
        masked: Columns of the window that are still to be written, in order.
        sub_block: First column of the sub-block that is being denoised.
        due: Tokens that each step that is left to this sub-block must keep at least.
        fresh: Whether the cache has seen the whole window since this sub-block began.
    """

    def __init__(
        self, prompt: Prompt, mask_token_id: int, block_size: int, denoising_steps: int, sub_block_size: int
    ) -> None:
        super().__init__(prompt, mask_token_id)
        self.block_size, self.sub_block_size = block_size, sub_block_size
        self.schedule = transfer_schedule(sub_block_size, -(-denoising_steps * sub_block_size // block_size))
        self.first = len(prompt.ids) if prompt.own_blocks else len(prompt.ids) // block_size * block_size
        self._open(self.first)

    @property
    def span(self) -> range:
        """Columns that the next step runs: the sub-block, or all that the cache has not seen as it is now."""
        if self.fresh:
            return range(self.sub_block, self.sub_block + self.sub_block_size)
        return range(self.kept, self.end)

    @property
    def wanted(self) -> list[int]:
        """The masked columns of the sub-block, whose tokens are predicted in place."""
        return [column for column in self.masked if column < self.sub_block + self.sub_block_size]

    targets = wanted

    @property
    def known(self) -> list[int]:
        """All that comes before the window."""
        return [max(self.window, len(self.prompt.ids))] * len(self.wanted)

    @property
    def quota(self) -> int:
        """Number of tokens that the next step must keep at least."""
        return self.due[0]

    @property
    def written(self) -> list[int]:
        """Tokens of the answer in the window, the mask id where still masked."""
        return self.ids[max(self.window, len(self.prompt.ids)) : self.end]

    def columns_needed(self, new: int) -> int:
        """Columns of the row with an answer of `new` tokens, in whole blocks."""
        return self.first - (self.first - len(self.prompt.ids) - new) // self.block_size * self.block_size

    def see(self) -> None:
        """The cache holds the clean tokens before the window, and the window as it was run."""
        self.kept, self.fresh, self.read = self.window, True, True

    def write(self, tokens: list[int], keep: list[bool]) -> list[int]:
        """Writes the tokens that are kept; returns the block without the prompt's tokens when it is finished."""
        for column, token, kept in zip(self.wanted, tokens, keep, strict=True):
            if kept:
                self.ids[column] = token
                self.masked.remove(column)
        self.step += 1
        if len(self.due) > 1:  # a constraint that has refused tokens makes more steps than the schedule has
            self.due.pop(0)
        return self._move_on()

    @property
    def open_places(self) -> int:
        """Number of masked places of the window."""
        return len(self.masked)

    def append(self, tokens: list[int]) -> list[int]:
        """Writes the first masked tokens of the window; returns the block as `write` does."""
        for token in tokens:
            self.ids[self.masked.pop(0)] = token
        return self._move_on()

    def _move_on(self) -> list[int]:
        """Moves on to what is masked; returns the block without the prompt's tokens when it is finished."""
        window = range(self.window, self.end)
        masked = [column in self.masked for column in window]
        self.shown = Shown(self.block, window, self.ids[self.window :], masked)
        self._skip_to_masked()
        if self.masked:
            return []
        block = self.written
        self.block += 1
        self._open(self.end)
        return block

    def _clean_limit(self, column: int) -> int:
        if column < self.first or self.prompt.causal:
            return super()._clean_limit(column)
        return column + self.block_size - (column - self.first) % self.block_size

    def _open(self, window: int) -> None:
        """Moves the window to a column and fills it with masks."""
        self.window, self.sub_block, self.end = window, window, window + self.block_size
        self.masked = [*range(max(window, len(self.prompt.ids)), self.end)]
        self.ids += [self.mask_token_id] * (self.end - len(self.ids))
        self.step, self.fresh, self.due = 0, False, [*self.schedule]
        self._skip_to_masked()

    def _skip_to_masked(self) -> None:
        """Moves on to the first sub-block that is not all written, if there is one."""
        while self.masked and not self.wanted:
            self.sub_block += self.sub_block_size
            self.fresh, self.due = False, [*self.schedule]
