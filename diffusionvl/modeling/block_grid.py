"""Which block each token of a row belongs to."""

from itertools import pairwise

import torch
from torch import Tensor

from .configuration_diffusionvl import DiffusionVLConfig
from .families import media_types, reads_images_whole


def block_starts(input_ids: list[int], header_ids: list[int], eos_ids: list[int]) -> list[int]:
    """Where the block grid starts anew in a conversation when each response has its own blocks.

    A response opens after `header_ids` and ends with the next end-of-turn id; the text after it starts anew, too.
    Training and decoding both cut their grid here, so that they cannot differ.

    Args:
        input_ids: Ids of one conversation, without padding.
        header_ids: Ids that open a response; may be empty, then nothing is cut.
        eos_ids: Ids that end a turn.

    Returns:
        Ascending indices, each the first token of a new part; 0 is not among them.
    """
    starts: list[int] = []
    inside = False
    width = len(header_ids)
    for index in range(1, len(input_ids) + 1):
        if inside and input_ids[index - 1] in eos_ids:
            starts.append(index)
            inside = False
        elif not inside and width and index >= width and input_ids[index - width : index] == header_ids:
            starts.append(index)
            inside = True
    return starts


def block_grid(length: int, block_size: int, starts: list[int] | None = None) -> Tensor:
    """Block index of every token of a row.

    Args:
        length: L, the number of tokens.
        block_size: D.
        starts: Where the grid starts anew (`block_starts`); empty for one grid from index 0.

    Returns:
        Integer tensor [L]; a part whose length is not a multiple of D ends in a shorter block.
    """
    blocks: list[int] = []
    edges = [0, *(start for start in starts or [] if start < length), length]
    for begin, end in pairwise(edges):
        first = blocks[-1] + 1 if blocks else 0
        blocks.extend(first + offset // block_size for offset in range(end - begin))
    return torch.tensor(blocks, dtype=torch.long)


def keep_whole(blocks: Tensor, inside: Tensor) -> Tensor:
    """Block index of every token where each run of tokens that `inside` marks is to see itself in both directions.

    A run (an image) joins the block of its last token; the tokens before it stay where they are. With D = 4
    (`t` text, `i` image)::

        tokens     t  t  i  i  i  i  i  t  t
        before     0  0  0  0  1  1  1  1  2
        after      0  0  1  1  1  1  1  1  2

    Args:
        blocks: Block index of every token [L].
        inside: [L].
    """
    last = inside & ~torch.nn.functional.pad(inside, (0, 1))[1:]
    ends = last.nonzero()[:, 0]
    if not len(ends):
        return blocks
    own_end = ends[torch.searchsorted(ends, torch.arange(len(blocks), device=ends.device)).clamp(max=len(ends) - 1)]
    return torch.where(inside, blocks[own_end], blocks)


def row_blocks(config: DiffusionVLConfig, input_ids: Tensor, block_size: int | None = None) -> Tensor:
    """Block of each token of one clean row [L], by `config.block_origin`, of `config.block_size` tokens by default.

    Training and decoding both cut their grid here, so that they cannot differ.
    """
    starts: list[int] = []
    if config.block_origin == "response":
        starts = block_starts(input_ids.tolist(), config.response_header_ids, config.end_of_turn_ids)
    blocks = block_grid(len(input_ids), block_size or config.block_size, starts).to(input_ids.device)
    return _with_whole_images(config, input_ids, blocks)


def clean_blocks(config: DiffusionVLConfig, input_ids: Tensor, block_size: int | None = None) -> Tensor:
    """Block of each clean token of one row [L] as the mask reads it (`TokenTags.block`), by `config.clean_attention`.

    `block`: the blocks of `row_blocks`. `causal`: every clean token is a block of its own, so that it sees what an AR
    model lets it see; an image that the base reads whole stays one block. In both, a noisy block has the number of its
    first clean token: `clean_blocks(...)[block_firsts(row_blocks(...))]`.
    """
    if config.clean_attention == "block":
        return row_blocks(config, input_ids, block_size)
    return _with_whole_images(config, input_ids, torch.arange(len(input_ids), device=input_ids.device))


def block_firsts(blocks: Tensor) -> Tensor:
    """Index of the first token of each token's block, for ascending blocks [L].

    >>> block_firsts(torch.tensor([0, 0, 1, 1, 1, 2])).tolist()
    [0, 0, 2, 2, 2, 5]
    """
    return torch.searchsorted(blocks, blocks)


def _with_whole_images(config: DiffusionVLConfig, input_ids: Tensor, blocks: Tensor) -> Tensor:
    """Blocks [L] in which an image is one block, where the base reads images whole."""
    if reads_images_whole(config.base_config):
        return keep_whole(blocks, media_types(config.base_config, input_ids) > 0)
    return blocks
