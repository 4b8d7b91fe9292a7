"""The canvas that rows are decoded on: each its prompt and the room for its answer, with a window of its own.

Column c of a row stands in column c of the row's cache slot. Everything here is on the CPU.

Legend: A axes of a position, R rows, C columns, n rows of a forward, T tokens of a forward, D block size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cache_diffusionvl import Rows

PER_ROW = ("ids", "masked", "limit", "kept", "window")  # tensors whose first dimension is R


@dataclass
class Canvas:
    """Prompts followed by mask tokens, each row from column 0 on; row r's window starts at its own column `window[r]`.

    Prompts of 5 and 3 tokens, D = 4 and one grid from index 0 (`p` prompt, `M` mask, `|` the window)::

        row 0    p  p  p  p |p  M  M  M| M  M  M  M       4 prompt tokens come before the window, 1 stands in it
        row 1   |p  p  p  M| M  M  M  M  .  .  .  .       none come before it, 3 stand in it; `.` nobody's

    What a token may see are the columns left of its `limit`: its own block and all before it. The window is the last
    block that is in a forward, so this is the whole block-diffusion mask of decoding.

    Attributes:
        ids: Tokens [R, C].
        masked: Which tokens are still to be written [R, C].
        position: [A, R, C].
        limit: First column behind each token's block [R, C].
        kept: Columns whose clean keys and values are in the cache [R].
        window: First column of each row's window [R].
        block_size: D.
        mask_token_id: The id of a token still to be written, and of padding in a forward.
    """

    ids: Tensor
    masked: Tensor
    position: Tensor
    limit: Tensor
    kept: Tensor
    window: Tensor
    block_size: int
    mask_token_id: int

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
        """Lays out one prompt as a canvas of one row.

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
        new = end - prompt
        behind = (position_ids.amax() + 1 + torch.arange(new)).expand(len(position_ids), -1)
        limit = torch.searchsorted(block_ids, block_ids, right=True)
        limit[window:] = window + block_size
        answer_blocks = (torch.arange(prompt, end) - window) // block_size
        return cls(
            ids=torch.cat([input_ids, input_ids.new_full((new,), mask_token_id)])[None],
            masked=(torch.arange(end) >= prompt)[None],
            position=torch.cat([position_ids, behind], dim=1)[:, None],
            limit=torch.cat([limit, window + (answer_blocks + 1) * block_size])[None],
            kept=torch.zeros(1, dtype=torch.long),
            window=torch.tensor([window]),
            block_size=block_size,
            mask_token_id=mask_token_id,
        )

    def extend(self, other: "Canvas") -> None:
        """Appends the rows of another canvas."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        for name in (*PER_ROW, "position"):
            pair = [getattr(canvas, name) for canvas in (self, other)]
            if name not in ("kept", "window"):
                pair = [torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in pair]
            setattr(self, name, torch.cat(pair, dim=1 if name == "position" else 0))

    def remove(self, row: int) -> None:
        """Removes a row; the last one takes its place."""
        last = len(self.ids) - 1
        for name in PER_ROW:
            tensor = getattr(self, name)
            tensor[row] = tensor[last]
            setattr(self, name, tensor[:last])
        self.position[:, row] = self.position[:, last]
        self.position = self.position[:, :last]

    def tokens(self, rows: Rows, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a forward takes in: all columns from those in the cache to `end`, with padding on the right.

        Args:
            rows: The n rows.
            end: First column behind each row's tokens [n].

        Returns:
            Ids [n, T], positions [A, n, T] and limits [n, T], which are at least 1: nobody is left without a key.
        """
        kept = self.kept[rows]
        columns = kept[:, None] + torch.arange(int((end - kept).max()))
        real = torch.minimum(columns, (end - 1)[:, None]).clamp(min=0)
        axes = len(self.position)
        return (
            self.ids[rows].gather(1, real).masked_fill(columns >= end[:, None], self.mask_token_id),
            self.position[:, rows].gather(2, real.expand(axes, *real.shape)),
            torch.minimum(self.limit[rows].gather(1, real), end[:, None]).clamp(min=1),
        )

    def key_positions(self, rows: Rows, length: int) -> Tensor:
        """Positions of the first `length` columns, by the first axis [n, length]."""
        position = self.position[0, rows, :length]
        return torch.nn.functional.pad(position, (0, length - position.shape[1]))

    def windows(self, rows: Rows) -> Tensor:
        """Columns of these rows' windows [n, D]."""
        return self.window[rows][:, None] + torch.arange(self.block_size)


def columns_needed(inside: int, max_new_tokens: int, block_size: int) -> int:
    """Columns from the first window on: whole blocks for the `inside` prompt tokens in it and the answer."""
    return -(-(inside + max_new_tokens) // block_size) * block_size
