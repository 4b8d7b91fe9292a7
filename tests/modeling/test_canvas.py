"""The canvas: rows that stand at different columns, what a forward takes in, and who may see whom."""

import pytest
import torch

from diffusionvl.modeling.batch import pack
from diffusionvl.modeling.block_masks import CLEAN, TokenTags, dense_mask
from diffusionvl.modeling.canvas import Canvas, lay_out

MASK = 99
CPU = torch.device("cpu")


def build(length, block_size, new, own_blocks=False, first=0, steps=1, sub_block_size=None):
    """A row that holds the tokens first, first + 1, ...; its grid starts at index 0."""
    index = torch.arange(length)
    sizes = (block_size, MASK, new, steps, sub_block_size or block_size)
    return Canvas.build(first + index, index[None], index // block_size, own_blocks, *sizes)


def test_the_drawing_of_the_docstring():
    canvas = build(5, block_size=4, new=7)
    assert canvas.ids == [0, 1, 2, 3, 4, *[MASK] * 7]
    assert (canvas.window, canvas.end, canvas.masked) == (4, 8, [5, 6, 7])
    packed = pack([canvas], [canvas.span], CPU)
    assert packed.ids.tolist() == [[0, 1, 2, 3, 4, MASK, MASK, MASK]]
    assert packed.positions.tolist() == [[[*range(8)]]]
    assert packed.limits.tolist() == [[4] * 4 + [8] * 4]
    assert (packed.start, packed.length, packed.open) == (0, 8, False)
    canvas.write({6: 56, 5: 55})
    assert (canvas.wanted, canvas.step) == ([7], 1)
    canvas.write({7: 57})
    canvas.advance()
    assert (canvas.ids[4:8], canvas.window, canvas.masked) == ([4, 55, 56, 57], 8, [8, 9, 10, 11])


@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_windows_are_whole_blocks(own_blocks, block_size):
    for prompt in range(1, 9):
        for new in range(1, 9):
            window, end = lay_out(prompt, own_blocks, new, block_size)
            assert window == prompt if own_blocks else window % block_size == 0 <= prompt - window < block_size
            assert (end - window) % block_size == 0 <= end - prompt - new < block_size


@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("new", [1, 4, 9])
def test_windows_hold_every_token_once_and_see_what_the_predicate_allows(new, block_size, own_blocks):
    """Every forward of a decoding, against the mask that training uses."""
    for first, length in enumerate([9, 4, 1, 8]):
        canvas = build(length, block_size, new, own_blocks, 10 * first)
        total = len(canvas.ids)
        assert length + new <= total < length + new + 2 * block_size
        assert canvas.ids == [10 * first + i for i in range(length)] + [MASK] * (total - length)
        assert canvas.position == [[*range(total)]]
        while True:
            begin, end = canvas.window, canvas.end
            packed = pack([canvas], [canvas.span], CPU)
            new_tokens = torch.arange(canvas.kept, end)
            assert packed.ids[0].tolist() == canvas.ids[canvas.kept : end]
            answer_block = -(-length // block_size)
            blocks = [
                answer_block + (i - length) // block_size if own_blocks and i >= length else i // block_size
                for i in range(end)
            ]
            streams = [CLEAN] * begin + [1] * block_size
            tags = TokenTags(torch.tensor([blocks]), torch.tensor([streams]), torch.zeros(1, end).long())
            expected = dense_mask(tags)[0, 0, new_tokens]
            assert torch.equal(torch.arange(end) < packed.limits[0, :, None], expected)
            assert packed.open == bool(expected.all())
            if end == total:
                break
            canvas.kept = begin
            canvas.advance()


def test_sub_blocks_are_denoised_one_after_another():
    """The first step of each runs what the cache has not seen, the others run the sub-block alone."""
    canvas = build(7, block_size=8, new=12, steps=5, sub_block_size=2)
    assert (canvas.window, canvas.quotas) == (0, [1, 1])
    assert (canvas.wanted, canvas.span) == ([7], range(8))  # the prompt fills three sub-blocks
    canvas.write({7: 1})
    canvas.advance()
    canvas.kept = 8
    spans = []
    for column in (9, 8, 10, 11, 12, 13, 15, 14):
        assert column in canvas.wanted
        spans.append(canvas.span)
        canvas.fresh = True
        canvas.write({column: 1})
    begins = [range(first, first + 2) for first in (8, 10, 12, 14)]
    assert spans == [span for begin in begins for span in (range(8, 16), begin)]
    assert not canvas.masked


def test_rows_of_a_forward_are_padded_on_the_right_and_nobody_sees_the_padding():
    long, short, middle = (build(length, 4, 7, True, first) for length, first in ((9, 0), (4, 10), (6, 20)))
    long.kept = 9
    packed = pack([long, middle], [long.span, middle.span], CPU)
    assert packed.ids.tolist() == [[MASK] * 10, [20, 21, 22, 23, 24, 25, *[MASK] * 4]]
    assert packed.positions[0, 0, :4].tolist() == [9, 10, 11, 12]
    assert packed.columns.tolist() == [[*range(9, 19)], [*range(10)]]
    assert packed.limits.tolist() == [[13] * 10, [4] * 4 + [6] * 2 + [10] * 4]
    assert (packed.start, packed.length, packed.capacity, packed.open) == (None, 13, 19, False)
    # A forward over what is not in the cache yet, with a row that has nothing.
    packed = pack([long, short], [range(9, 9), range(4)], CPU)
    assert packed.ids.tolist() == [[MASK] * 4, [10, 11, 12, 13]]
    empty = build(3, 4, 7)
    packed = pack([empty, short], [range(0), range(4)], CPU)
    assert packed.ids.tolist() == [[MASK] * 4, [10, 11, 12, 13]]
    assert packed.limits.min() == 1
    assert packed.columns.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]  # padding goes behind the window


def test_rows_of_one_length_that_are_in_the_cache_need_no_mask():
    rows = [build(4, 4, 9, True), build(4, 4, 9, True, 10)]
    assert not pack(rows, [row.span for row in rows], CPU).open
    for row in rows:
        row.kept = row.window
    packed = pack(rows, [row.span for row in rows], CPU)
    assert packed.open
    assert packed.start == 4
    rows.append(build(5, 4, 9, True, 20))
    rows[2].kept = 5
    assert not pack(rows, [row.span for row in rows], CPU).open


def test_an_answer_goes_on_behind_the_largest_position():
    """The axes of an image end at different positions; the text behind it starts behind the largest."""
    position = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3], [0, 1, 1, 2]])
    canvas = Canvas.build(torch.ones(4).long(), position, torch.zeros(4).long(), True, 2, MASK, 3, 1, 2)
    assert [axis[4:] for axis in canvas.position] == [[4, 5, 6, 7]] * 3


def test_a_prompt_of_several_parts_keeps_its_grid():
    blocks = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])  # parts of 5, 2 and 1 tokens
    canvas = Canvas.build(torch.arange(8), torch.arange(8)[None], blocks, True, 4, MASK, 4, 1, 4)
    assert canvas.limit == [4, 4, 4, 4, 5, 7, 7, 8, 12, 12, 12, 12]
