"""Blocks smaller than the checkpoint's: their size may grow in the course of a run, or be drawn for each document.

Legend: B rows, T tokens of a row, D the checkpoint's block size.
"""

import random
from itertools import accumulate

import torch
from torch import Tensor

from .corruption import Supervised


def sizes_up_to(block_size: int) -> list[int]:
    """D and the powers of two below it that divide it, ascending.

    >>> sizes_up_to(8), sizes_up_to(12)
    ([1, 2, 4, 8], [1, 2, 4, 12])
    """
    powers = [2**power for power in range(block_size.bit_length())]
    return [size for size in powers if size < block_size and block_size % size == 0] + [block_size]


def drawn_size(block_size: int, least: int, seed: int, step: int, row: int, view: int = 0) -> int:
    """The block size of a document's noisy copy in one step: of `sizes_up_to`, not below `least` unless D is."""
    sizes = [size for size in sizes_up_to(block_size) if size >= min(least, block_size)]
    return random.Random(f"{seed}-{step}-{row}-{view}-block-size").choice(sizes)


def grown_size(sizes: list[int], lengths: list[float] | None, step: int, steps: int) -> int:
    """The block size of one step of a run whose blocks grow.

    Args:
        sizes: Ascending; the last one is D.
        lengths: What each size but the last is trained for: a number of steps, or a share of the run if below 1; equal
            shares if left out.
        step: From 0.
        steps: Steps of the run.
    """
    lengths = [1 / len(sizes)] * (len(sizes) - 1) if lengths is None else lengths
    ends = accumulate(length if length >= 1 else length * steps for length in lengths)
    return sizes[sum(step >= end for end in ends)]


def split_blocks(tokens: Supervised, fill: Tensor, sizes: Tensor, block_size: int, causal: bool) -> Supervised:
    """The tokens of a batch as rows of smaller blocks have them (`data/streams.py: build_row`).

    A block that holds nothing but fill is left without supervision. With D = 4, a response of 5 tokens with its end
    `e`, and blocks of 2::

        noisy    r0 r1 r2 r3|e  f  f  f         r0 r1|r2 r3|e  f |f  f
                 ^  ^  ^  ^  ^  ^  ^  ^         ^  ^  ^  ^  ^  ^

    Args:
        tokens: The tokens, in blocks of D; clean ones are stream 0.
        fill: Whether a token is a fill after an end of turn, which has no clean twin [B, T].
        sizes: The block size that each token's copy gets; divides D [B, T].
        block_size: D.
        causal: Whether every clean token is a block of its own, and a noisy block has the number of its first token.
    """
    part = tokens.place // sizes
    if causal:
        block = torch.where(tokens.stream == 0, tokens.block, tokens.block + part * sizes)
    else:
        block = tokens.block * block_size + part
    split = tokens._replace(block=block)
    run, real = split.run.flatten(), (tokens.mask & ~fill).flatten()
    wanted = torch.zeros(len(run), dtype=torch.long, device=run.device).index_add(0, run, real.long()) > 0
    return split._replace(mask=tokens.mask & wanted[run].view_as(tokens.mask))
