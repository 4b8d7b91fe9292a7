"""The canvas: windows of rows with prompts of different lengths, and the columns before them."""

import pytest
import torch

from diffusionvl.modeling.block_masks import PADDING
from diffusionvl.modeling.canvas_diffusionvl import Canvas

MASK = 99


def build(lengths, block_size, new, own_blocks=False):
    """Row r holds the tokens 10 r, 10 r + 1, ...; its grid starts at index 0."""
    width = max(lengths)
    ids, real = torch.zeros(len(lengths), width).long(), torch.zeros(len(lengths), width).long()
    for row, length in enumerate(lengths):
        ids[row, width - length :] = 10 * row + torch.arange(length)
        real[row, width - length :] = 1
    index = (real.cumsum(-1) - 1).clamp(min=0)
    return Canvas.build(ids, real, index[None], index // block_size, own_blocks, block_size, new, MASK)


def test_the_drawing_of_the_docstring():
    canvas = build([5, 3], block_size=4, new=7)
    ids, _ = canvas.tokens(canvas.window(0))
    assert ids.tolist() == [[4, MASK, MASK, MASK], [10, 11, 12, MASK]]
    assert canvas.window(1).tolist() == [[8, 9, 10, 11], [6, 7, 8, 9]]
    assert canvas.prefix().tolist() == [[0, 1, 2, 3], [-2, -1, 0, 1]]
    assert canvas.tags(canvas.prefix()).document.tolist() == [[0] * 4, [PADDING] * 4]
    assert canvas.windows == 3  # 3 prompt tokens and 7 more are 10, and so need 3 blocks


@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("new", [1, 4, 9])
def test_prefix_and_windows_hold_every_token_once_block_by_block(new, block_size, own_blocks):
    lengths = [9, 4, 1, 8]
    canvas = build(lengths, block_size, new, own_blocks)
    columns = torch.cat([canvas.prefix(), *(canvas.window(index) for index in range(canvas.windows))], dim=1)
    tags = canvas.tags(columns)
    ids, positions = canvas.tokens(columns)
    for row, length in enumerate(lengths):
        real = tags.document[row] != PADDING
        count = int(real.sum())
        assert count >= length + new
        assert ids[row, real].tolist() == [10 * row + i for i in range(length)] + [MASK] * (count - length)
        assert positions[0, row, real].tolist() == list(range(count))
        answer_block = -(-length // block_size)
        assert tags.block[row, real].tolist() == [
            answer_block + (i - length) // block_size if own_blocks and i >= length else i // block_size
            for i in range(count)
        ]
        for index in range(canvas.windows):
            window = canvas.tags(canvas.window(index))
            assert len(window.block[row].unique()) == 1
            assert (window.document[row] != PADDING).all()


def test_an_answer_goes_on_behind_the_largest_position():
    """The axes of an image end at different positions; the text behind it starts behind the largest."""
    position = torch.tensor([[[0, 1, 1, 1]], [[0, 1, 2, 3]], [[0, 1, 1, 2]]])
    ids = torch.ones(1, 4).long()
    canvas = Canvas.build(ids, ids, position, torch.zeros_like(ids), True, 2, 3, MASK)
    _, positions = canvas.tokens(canvas.window(0))
    assert positions[:, 0].tolist() == [[4, 5]] * 3
