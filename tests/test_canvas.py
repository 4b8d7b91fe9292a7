"""The canvas: rows that stand at different columns, what a forward takes in, and who may see whom."""

import pytest
import torch

from diffusionvl.modeling.block_masks import CLEAN, TokenTags, dense_mask
from diffusionvl.modeling.cache_diffusionvl import as_index
from diffusionvl.modeling.canvas_diffusionvl import Canvas

MASK = 99


def build_row(length, block_size, new, own_blocks=False, first=0):
    """A row that holds the tokens first, first + 1, ...; its grid starts at index 0."""
    index = torch.arange(length)
    return Canvas.build(first + index, index[None], index // block_size, own_blocks, block_size, new, MASK)


def build(lengths, block_size, new, own_blocks=False):
    """Row r holds the tokens 10 r, 10 r + 1, ..."""
    canvas = build_row(lengths[0], block_size, new, own_blocks)
    for row, length in enumerate(lengths[1:], start=1):
        canvas.extend(build_row(length, block_size, new, own_blocks, 10 * row))
    return canvas


def test_the_drawing_of_the_docstring():
    canvas = build([5, 3], block_size=4, new=7)
    rows = slice(0, 2)
    assert canvas.windows(rows).tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert canvas.ids[:, :8].tolist() == [[0, 1, 2, 3, 4, MASK, MASK, MASK], [10, 11, 12, MASK, MASK, MASK, MASK, MASK]]
    assert canvas.masked.sum(1).tolist() == [7, 9]  # 3 prompt tokens and 7 more are 10, and so fill 3 blocks
    ids, positions, limits = canvas.tokens(rows, canvas.window[rows] + 4)
    assert ids.tolist() == [[0, 1, 2, 3, 4, MASK, MASK, MASK], [10, 11, 12, MASK] + [MASK] * 4]
    assert positions[0, 0].tolist() == [*range(8)]
    assert limits.tolist() == [[4] * 4 + [8] * 4, [4] * 8]


@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("new", [1, 4, 9])
def test_windows_hold_every_token_once_and_see_what_the_predicate_allows(new, block_size, own_blocks):
    """Every forward of a decoding, against the mask that training uses."""
    lengths = [9, 4, 1, 8]
    for row, length in enumerate(lengths):
        canvas = build_row(length, block_size, new, own_blocks, 10 * row)
        total = canvas.ids.shape[1]
        assert length + new <= total < length + new + 2 * block_size
        assert canvas.ids[0].tolist() == [10 * row + i for i in range(length)] + [MASK] * (total - length)
        assert canvas.position[0, 0].tolist() == [*range(total)]
        while True:
            begin, end = int(canvas.window), int(canvas.window) + block_size
            ids, _, limits = canvas.tokens(slice(0, 1), canvas.window + block_size)
            new_tokens = torch.arange(int(canvas.kept), end)
            assert torch.equal(ids[0], canvas.ids[0, new_tokens])
            answer_block = -(-length // block_size)
            blocks = [
                answer_block + (i - length) // block_size if own_blocks and i >= length else i // block_size
                for i in range(end)
            ]
            streams = [CLEAN] * begin + [1] * block_size
            tags = TokenTags(torch.tensor([blocks]), torch.tensor([streams]), torch.zeros(1, end).long())
            expected = dense_mask(tags)[0, 0, new_tokens]
            assert torch.equal(torch.arange(end) < limits[0, :, None], expected)
            if end == total:
                break
            canvas.kept, canvas.window = canvas.window, canvas.window + block_size


def test_rows_of_a_forward_are_padded_on_the_right_and_nobody_sees_the_padding():
    canvas = build([9, 4, 6], block_size=4, new=7, own_blocks=True)
    canvas.kept = torch.tensor([9, 0, 0])
    ids, positions, limits = canvas.tokens(as_index([0, 2]), torch.tensor([13, 10]))
    assert ids.tolist() == [[MASK] * 10, [20, 21, 22, 23, 24, 25, *[MASK] * 4]]
    assert positions.shape == (1, 2, 10)
    assert limits.tolist() == [[13] * 10, [4] * 4 + [6] * 2 + [10] * 4]
    # A forward over what is not in the cache yet, and a row that has nothing.
    ids, _, limits = canvas.tokens(as_index([0, 1]), torch.tensor([9, 4]))
    assert ids.tolist() == [[MASK] * 4, [10, 11, 12, 13]]
    assert limits.min() >= 1


def test_removing_a_row_moves_the_last_one_into_its_place():
    canvas = build([5, 3, 8], block_size=4, new=7)
    last = [canvas.ids[2].tolist(), canvas.position[:, 2].tolist(), canvas.limit[2].tolist(), int(canvas.window[2])]
    canvas.remove(0)
    assert len(canvas.ids) == len(canvas.kept) == canvas.position.shape[1] == 2
    assert [canvas.ids[0].tolist(), canvas.position[:, 0].tolist(), canvas.limit[0].tolist(), 8] == last
    canvas.remove(1)
    assert canvas.ids[0].tolist() == last[0]
    canvas.remove(0)
    assert len(canvas.ids) == 0


def test_an_answer_goes_on_behind_the_largest_position():
    """The axes of an image end at different positions; the text behind it starts behind the largest."""
    position = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3], [0, 1, 1, 2]])
    canvas = Canvas.build(torch.ones(4).long(), position, torch.zeros(4).long(), True, 2, 3, MASK)
    assert canvas.position[:, 0, 4:].tolist() == [[4, 5, 6, 7]] * 3


def test_a_prompt_of_several_parts_keeps_its_grid():
    blocks = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])  # parts of 5, 2 and 1 tokens
    canvas = Canvas.build(torch.arange(8), torch.arange(8)[None], blocks, True, 4, 4, MASK)
    assert canvas.limit[0].tolist() == [4, 4, 4, 4, 5, 7, 7, 8, 12, 12, 12, 12]
