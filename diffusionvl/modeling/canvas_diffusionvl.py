"""The canvas a batch is decoded on: prompt and room for the answer, with a window that moves block by block.

Legend: A axes of a position, B batch, P padded prompt, C columns of the canvas, D block size, N tokens of a forward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .block_masks import CLEAN, PADDING, TokenTags


@dataclass
class Canvas:
    """Left-padded prompts followed by mask tokens; row r's first window starts at its own column `start[r]`.

    With prompts of 5 and 3 tokens, D = 4 and one grid from index 0 (`.` padding, `p` prompt, `M` mask, `|` the first
    window)::

        row 0    p  p  p  p |p  M  M  M| M  M ...     4 prompt tokens come before the window, 1 stands in it
        row 1    .  .|p  p  p  M| M  M  M  M ...      0 come before it, 3 stand in it

    Attributes:
        ids: Tokens [B, C].
        masked: Which tokens are still to be written [B, C].
        position: [A, B, C].
        block: Block of each token [B, C].
        document: 0, or `PADDING` left of the prompt [B, C].
        start: First column of each row's first window [B].
        prompt_length: P, the column where the answers begin.
        block_size: D.
    """

    ids: Tensor
    masked: Tensor
    position: Tensor
    block: Tensor
    document: Tensor
    start: Tensor
    prompt_length: int
    block_size: int

    @classmethod
    def build(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        block_ids: Tensor,
        own_blocks: bool,
        block_size: int,
        max_new_tokens: int,
        mask_token_id: int,
    ) -> "Canvas":
        """Lays out left-padded prompts.

        Args:
            input_ids: Prompts [B, P].
            attention_mask: 1 for tokens, 0 for padding on the left [B, P].
            position_ids: [A, B, P].
            block_ids: Block of each prompt token [B, P].
            own_blocks: Whether an answer starts its own block; else it goes on in the prompt's last, unfinished one.
            block_size: D.
            max_new_tokens: Room for each row's answer.
            mask_token_id: The id of a token still to be written.
        """
        batch, prompt = input_ids.shape
        lengths = attention_mask.long().sum(-1)
        inside = torch.zeros_like(lengths) if own_blocks else lengths % block_size
        start = prompt - inside
        windows = -(-(int(inside.max()) + max_new_tokens) // block_size)
        extra = windows * block_size
        step = torch.arange(extra, device=input_ids.device)
        next_block = torch.where(inside > 0, block_ids[:, -1], block_ids[:, -1] + 1)
        return cls(
            ids=torch.cat([input_ids, input_ids.new_full((batch, extra), mask_token_id)], dim=1),
            masked=torch.cat([torch.zeros_like(input_ids), input_ids.new_ones(batch, extra)], dim=1).bool(),
            position=torch.cat(
                [position_ids, (position_ids.amax((0, 2))[:, None] + 1 + step).expand(position_ids.shape[0], -1, -1)],
                dim=2,
            ),
            block=torch.cat([block_ids, next_block[:, None] + (inside[:, None] + step) // block_size], dim=1),
            document=torch.nn.functional.pad((attention_mask == 0) * PADDING, (0, extra)),
            start=start,
            prompt_length=prompt,
            block_size=block_size,
        )

    @property
    def windows(self) -> int:
        """The number of windows until every row has its room."""
        return (self.ids.shape[1] - self.prompt_length) // self.block_size

    @property
    def answer(self) -> Tensor:
        """The columns of the answers, a view [B, C - P]."""
        return self.ids[:, self.prompt_length :]

    def window(self, index: int) -> Tensor:
        """Columns of each row's window [B, D]."""
        return self.start[:, None] + index * self.block_size + torch.arange(self.block_size, device=self.ids.device)

    def prefix(self) -> Tensor:
        """Columns before each row's first window [B, N], right-aligned; shorter rows reach into their padding."""
        width = int((self.start - (self.document == PADDING).sum(-1)).max())
        return self.start[:, None] + torch.arange(-width, 0, device=self.ids.device)

    def tags(self, columns: Tensor, stream: int = CLEAN) -> TokenTags:
        """Tags of the tokens in these columns [B, N]. Columns left of the canvas are padding."""
        real = columns.clamp(min=0)
        document = self.document.gather(1, real).masked_fill(columns < 0, PADDING)
        return TokenTags(self.block.gather(1, real), torch.full_like(columns, stream), document)

    def tokens(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, N] and positions [A, B, N] of these columns."""
        real = columns.clamp(min=0)
        axes = self.position.shape[0]
        return self.ids.gather(1, real), self.position.gather(2, real.expand(axes, *real.shape))
