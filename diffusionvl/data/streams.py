"""From one conversation to one row: a clean stream, then a noisy copy of the blocks that carry loss.

Legend: A axes of a position, L clean tokens, R tokens of a noisy copy, T tokens of the row, D block size.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..modeling.errors import UserError

IGNORED = -100
LAYOUTS = ("response_only", "two_stream", "clean")


@dataclass
class Row:
    """One row of a batch.

    Attributes:
        input_ids: Tokens [T]; in the noisy stream still the clean ones, which the objective corrupts.
        labels: The token itself where it carries loss, else -100 [T]. With two streams only noisy tokens do.
        block_ids: Block of each token [T].
        stream_ids: 0 for clean, 1, 2, ... for noisy copies [T].
        position_ids: [A, T]; a noisy token has the position of its clean twin.
        twins: Index of each token's clean twin in the row [T]; a clean token is its own.
        media: Image and video inputs of the clean stream.
        index: Index of the row in the data set.
        name: Where the row comes from, for messages.
    """

    input_ids: Tensor
    labels: Tensor
    block_ids: Tensor
    stream_ids: Tensor
    position_ids: Tensor
    twins: Tensor
    media: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    name: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)


def build_row(
    input_ids: Tensor,
    labels: Tensor,
    block_ids: Tensor,
    position_ids: Tensor,
    block_size: int,
    fill_id: int,
    layout: str = "response_only",
    views: int = 1,
    mask_block_ids: Tensor | None = None,
) -> Row:
    """Puts noisy copies of the supervised blocks after a clean stream.

    A response whose end of turn stands inside a block is filled to the block's edge, in the noisy stream, with
    supervised end-of-turn tokens: decoding writes whole blocks. A truncated one is not. With D = 4, a prompt of 5
    tokens and a response of 5 that starts its own block (`e` end of turn, `^` carries loss)::

        clean   p0 p1 p2 p3|p4|r0 r1 r2 r3| e
        noisy                 |r0 r1 r2 r3| e  e  e  e
                               ^  ^  ^  ^   ^  ^  ^  ^

    Args:
        input_ids: Clean tokens [L].
        labels: The token itself where it carries loss, else -100 [L].
        block_ids: Block in which each token is denoised [L].
        position_ids: [A, L].
        block_size: D.
        fill_id: The end-of-turn id.
        layout: `response_only` copies the supervised blocks; `two_stream` all, as the reference; `clean` none, for AR.
        views: K, the number of noisy copies, one after another.
        mask_block_ids: Block of each clean token as the mask reads it [L], where it is another one: a causal clean
            stream numbers its tokens one by one, and a noisy block has the number of its first token.

    Returns:
        The row, T = L + K R tokens.

    Raises:
        UserError: `layout` is unknown.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    twins = torch.arange(len(input_ids))
    clean_numbers = block_ids if mask_block_ids is None else mask_block_ids
    if layout == "clean":
        labels = torch.cat([torch.full_like(labels[:1], IGNORED), labels[1:]])  # no token predicts the first one
        return Row(input_ids, labels, clean_numbers, torch.zeros_like(input_ids), position_ids, twins)
    supervised_blocks = block_ids[labels != IGNORED].unique()
    copied = torch.ones_like(input_ids).bool() if layout == "two_stream" else torch.isin(block_ids, supervised_blocks)
    ends = (input_ids == fill_id) & (labels != IGNORED)
    source, fill = _with_fill(copied, ends, labels, block_ids, block_size)
    noisy_labels = torch.where(fill > 0, fill_id, labels[source])
    numbers = clean_numbers[torch.searchsorted(block_ids, block_ids)][source]  # of each block's first token
    return Row(
        input_ids=torch.cat([input_ids, *[torch.where(fill > 0, fill_id, input_ids[source])] * views]),
        labels=torch.cat([torch.full_like(labels, IGNORED), *[noisy_labels] * views]),
        block_ids=torch.cat([clean_numbers, *[numbers] * views]),
        stream_ids=torch.cat([torch.zeros_like(input_ids), *(torch.full_like(source, k + 1) for k in range(views))]),
        position_ids=torch.cat([position_ids, *[position_ids[:, source] + fill] * views], dim=1),
        twins=torch.cat([twins, *[source] * views]),
    )


def draft_blocks(supervised: Tensor, block_size: int, source: random.Random) -> Tensor:
    """Blocks that draft training denoises: each response is cut at random, since verification may end at any token.

    The first block of a response has 1 to D tokens, the others D. With D = 4, a prompt of 3 tokens and a response of 7
    whose first block has 2::

        tokens     p  p  p  r  r  r  r  r  r  r
        blocks     0  0  0  1  1  2  2  2  2  3

    Args:
        supervised: Whether a token carries loss [L].
        block_size: D.
        source: Where the first blocks' lengths come from.

    Returns:
        The block of each token [L], ascending.
    """
    starts = torch.zeros_like(supervised)
    padded = torch.nn.functional.pad(supervised, (1, 1)).int().diff()
    begins, ends = (padded == 1).nonzero()[:, 0].tolist(), (padded == -1).nonzero()[:, 0].tolist()
    for begin, end in zip(begins, ends, strict=True):
        starts[begin] = True
        starts[begin + source.randint(1, block_size) : end : block_size] = True
        starts[end : end + 1] = True
    return starts.long().cumsum(0)


def join_views(rows: list[Row]) -> Row:
    """One row whose noisy streams are those of rows of the same tokens, each of which is cut into other blocks."""
    first = rows[0]
    length = int((first.stream_ids == 0).sum())

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(first, name)[..., :length], *(getattr(row, name)[..., length:] for row in rows)], -1)

    return Row(
        joined("input_ids"),
        joined("labels"),
        joined("block_ids"),
        torch.cat([first.stream_ids[:length], *(row.stream_ids[length:] + view for view, row in enumerate(rows))]),
        joined("position_ids"),
        joined("twins"),
    )


def _with_fill(
    copied: Tensor, ends: Tensor, labels: Tensor, block_ids: Tensor, block_size: int
) -> tuple[Tensor, Tensor]:
    """Clean index of each noisy token, and the distance of a fill token from it (0 for a copy). Both [R]."""
    index = copied.nonzero()[:, 0]
    _, sizes = block_ids[index].unique_consecutive(return_counts=True)
    last = sizes.cumsum(0) - 1  # of each copied block, in `index`
    end = index[last]
    # Structural supervision also has the template's newline after the end of turn, maybe in a block of its own.
    ended = (ends[end] | ends[(end - 1).clamp(min=0)]) & (labels[end] != IGNORED)
    repeats = torch.ones_like(index)
    # An image that is kept whole may make a block longer than D.
    repeats[last] += torch.where(ended, (block_size - sizes).clamp(min=0), 0)
    begins = repeats.cumsum(0) - repeats
    source = index.repeat_interleave(repeats)
    return source, torch.arange(len(source)) - begins.repeat_interleave(repeats)
