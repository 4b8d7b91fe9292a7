"""Blocks smaller than the checkpoint's: split blocks are those of rows that were cut that way from the start."""

import random

import pytest
import torch

from diffusionvl.data.streams import build_row
from diffusionvl.modeling.block_grid import block_grid
from diffusionvl.modeling.block_masks import TokenTags, may_attend
from diffusionvl.objective.block_sizes import drawn_size, grown_size, sizes_up_to, split_blocks
from diffusionvl.objective.corruption import Supervised
from diffusionvl.objective.loss import IGNORED

END, D = 7, 8


def row_of(supervised, starts, size, causal, views):
    """A row of two streams in blocks of one size."""
    length = len(supervised)
    ids = torch.arange(length) % 5
    ids[[i for i in range(length) if supervised[i] and not supervised[i + 1 : i + 2].any()]] = END
    labels = torch.where(supervised, ids, IGNORED)
    numbers = torch.arange(length) if causal else None
    blocks = block_grid(length, size, starts)
    return build_row(ids, labels, blocks, torch.arange(length)[None], size, END, views=views, mask_block_ids=numbers)


def needed(row, supervised):
    """Facts of each token that can change the loss, and who of these attends to whom.

    Clean tokens and the blocks with supervision, each known by its stream, its position and what carries loss.
    """
    tags = Supervised.of(supervised[None], row.block_ids[None], stream=row.stream_ids[None])
    run = tags.run[0]
    kept = (row.stream_ids == 0) | (torch.zeros(len(run)).index_add(0, run, supervised.float())[run] > 0)
    facts = torch.stack([row.input_ids, row.stream_ids, row.position_ids[0], supervised.long()])[:, kept]
    own = TokenTags(row.block_ids[kept], row.stream_ids[kept], torch.zeros(int(kept.sum())))
    return facts, may_attend(TokenTags(*(tag[:, None] for tag in own)), TokenTags(*(tag[None] for tag in own)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_split_blocks_are_those_of_rows_that_are_cut_so_from_the_start(size, causal, views):
    draw = random.Random(size)
    for _ in range(30):
        turns = [(draw.randint(1, 20), draw.randint(1, 20)) for _ in range(draw.randint(1, 3))]
        supervised = torch.cat([torch.arange(asked + told) >= asked for asked, told in turns])
        starts = supervised.int().diff().nonzero()[:, 0] + 1
        starts = starts.tolist() if draw.random() < 0.7 else []  # or one grid from index 0
        large, expected = (row_of(supervised, starts, own, causal, views) for own in (D, size))
        tokens = Supervised.of((large.labels != IGNORED)[None], large.block_ids[None], stream=large.stream_ids[None])
        fill = large.position_ids != large.position_ids[:, large.twins]
        split = split_blocks(tokens, fill, torch.full_like(tokens.block, size), D, causal)
        large.block_ids = split.block[0]
        for found, right in zip(
            needed(large, split.mask[0]), needed(expected, expected.labels != IGNORED), strict=True
        ):
            assert torch.equal(found, right)


def test_documents_of_a_batch_may_have_sizes_of_their_own():
    block = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8])
    document = torch.tensor([[0] * 4 + [1] * 4, [2] * 8])
    tokens = Supervised.of(torch.ones(2, 8).bool(), block, document, torch.ones_like(block))
    sizes = torch.tensor([2, 4, 1])[document]
    split = split_blocks(tokens, torch.zeros(2, 8).bool(), sizes, 8, causal=False)
    assert split.place.tolist() == [[0, 1, 0, 1, 0, 1, 2, 3], [0] * 8]


def test_a_size_is_drawn_for_each_row_in_each_step():
    found = {drawn_size(8, 1, 0, step, row) for step in range(20) for row in range(3)}
    assert found == set(sizes_up_to(8))
    assert {drawn_size(8, 2, 0, step, 0) for step in range(50)} == {2, 4, 8}
    assert drawn_size(1, 2, 0, 0, 0) == 1
    assert drawn_size(8, 1, 5, 6, 7) == drawn_size(8, 1, 5, 6, 7)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (None, [1, 1, 1, 4, 4, 4, 8, 8, 8]),
        ([2, 3], [1, 1, 4, 4, 4, 8, 8, 8, 8]),
        ([0.5, 2], [1, 1, 1, 1, 1, 4, 4, 8, 8]),
    ],
)
def test_blocks_grow_by_steps_or_by_shares_of_the_run(lengths, expected):
    assert [grown_size([1, 4, 8], lengths, step, 9) for step in range(9)] == expected
