"""The canvas: rows that stand at different columns, what a forward takes in, and who may see whom."""

import pytest
import torch

from diffusionvl.modeling.block_canvas import BlockCanvas
from diffusionvl.modeling.block_masks import CLEAN, TokenTags, dense_mask
from diffusionvl.modeling.cache import pack
from diffusionvl.modeling.canvas import Prompt

MASK = 99


def build(length, block_size, own_blocks=False, first=0, steps=1, sub_block_size=None, causal=False):
    """A row that holds the tokens first, first + 1, ...; its grid starts at index 0."""
    index = torch.arange(length)
    blocks = index if causal else index // block_size
    prompt = Prompt.build(first + index, index[None], blocks, own_blocks, causal)
    return BlockCanvas(prompt, MASK, block_size, steps, sub_block_size or block_size)


def packed(*canvases, spans=None):
    spans = spans or [canvas.span for canvas in canvases]
    runs = [canvas.run(span) for canvas, span in zip(canvases, spans, strict=True)]
    return pack([*range(len(runs))], runs, MASK, torch.device("cpu"))


def fill(canvas, **tokens):
    """Writes tokens at columns (`c5=55`) of those that are wanted. Returns the block, if it is finished."""
    drawn = [tokens.get(f"c{column}") for column in canvas.wanted]
    return canvas.write(drawn, [token is not None for token in drawn])


def test_the_drawing_of_the_docstring():
    canvas = build(5, block_size=4, steps=3)
    assert canvas.ids == [0, 1, 2, 3, 4, *[MASK] * 3]
    assert (canvas.window, canvas.end, canvas.masked, canvas.due) == (4, 8, [5, 6, 7], [2, 1, 1])
    found = packed(canvas)
    assert found.ids.tolist() == [[0, 1, 2, 3, 4, MASK, MASK, MASK]]
    assert found.positions.tolist() == [[[*range(8)]]]
    assert found.limits.tolist() == [[4] * 4 + [8] * 4]
    assert (found.start, found.length, found.open) == (0, 8, False)
    assert fill(canvas, c6=56, c5=55) == []
    assert (canvas.wanted, canvas.step, canvas.written) == ([7], 1, [55, 56, MASK])
    assert fill(canvas, c7=57) == [55, 56, 57]
    assert (canvas.ids[4:8], canvas.window, canvas.masked) == ([4, 55, 56, 57], 8, [8, 9, 10, 11])
    assert (canvas.block, canvas.step, canvas.ids[8:]) == (1, 0, [MASK] * 4)


@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_windows_are_whole_blocks(own_blocks, block_size):
    for prompt in range(1, 9):
        canvas = build(prompt, block_size, own_blocks)
        window = canvas.window
        assert window == prompt if own_blocks else window % block_size == 0 <= prompt - window < block_size
        for new in range(1, 9):
            end = canvas.columns_needed(new)
            assert (end - window) % block_size == 0 <= end - prompt - new < block_size


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_windows_hold_every_token_once_and_see_what_the_predicate_allows(block_size, own_blocks, causal):
    """Every forward of a decoding, against the mask that training uses."""
    for first, length in enumerate([9, 4, 1, 8]):
        canvas = build(length, block_size, own_blocks, 10 * first, causal=causal)
        for _ in range(4):
            begin, end = canvas.window, canvas.end
            assert canvas.ids[:length] == [10 * first + i for i in range(length)]
            assert len(canvas.ids) == end
            found = packed(canvas)
            new_tokens = torch.arange(canvas.kept, end)
            assert found.ids[0].tolist() == canvas.ids[canvas.kept :]
            assert found.positions[0, 0].tolist() == new_tokens.tolist()
            answer_block = -(-length // block_size)
            blocks = [
                answer_block + (i - length) // block_size if own_blocks and i >= length else i // block_size
                for i in range(end)
            ]
            if causal:
                blocks = [*range(begin), *[begin] * block_size]  # a noisy block has the number of its first token
            streams = [CLEAN] * begin + [1] * block_size
            tags = TokenTags(torch.tensor([blocks]), torch.tensor([streams]), torch.zeros(1, end).long())
            expected = dense_mask(tags)[0, 0, new_tokens]
            assert torch.equal(torch.arange(end) < found.limits[0, :, None], expected)
            assert found.open == bool(expected.all())
            canvas.see()
            canvas.write([7] * len(canvas.wanted), [True] * len(canvas.wanted))


def test_sub_blocks_are_denoised_one_after_another():
    """The first step of each runs what the cache has not seen, the others run the sub-block alone."""
    canvas = build(7, block_size=8, steps=5, sub_block_size=2)
    assert (canvas.window, canvas.schedule) == (0, [1, 1])
    assert (canvas.wanted, canvas.span) == ([7], range(8))  # the prompt fills three sub-blocks
    assert fill(canvas, c7=1) == [1]
    canvas.kept = 8
    spans = []
    for column in (9, 8, 10, 11, 12, 13, 15, 14):
        assert column in canvas.wanted
        spans.append(canvas.span)
        canvas.see()
        block = fill(canvas, **{f"c{column}": 1})
    begins = [range(first, first + 2) for first in (8, 10, 12, 14)]
    assert spans == [span for begin in begins for span in (range(8, 16), begin)]
    assert block == [1] * 8


def test_rows_of_a_forward_are_padded_on_the_right_and_nobody_sees_the_padding():
    long, short, middle = (build(length, 4, True, first) for length, first in ((9, 0), (4, 10), (6, 20)))
    long.kept = 9
    found = packed(long, middle)
    assert found.ids.tolist() == [[MASK] * 10, [20, 21, 22, 23, 24, 25, *[MASK] * 4]]
    assert found.positions[0, 0, :4].tolist() == [9, 10, 11, 12]
    assert found.columns.tolist() == [[*range(9, 19)], [*range(10)]]
    assert found.limits.tolist() == [[13] * 10, [4] * 4 + [6] * 2 + [10] * 4]
    assert (found.start, found.length, found.capacity, found.open) == (None, 13, 19, False)
    # A forward over what is not in the cache yet, with a row that has nothing.
    found = packed(long, short, spans=[range(9, 9), range(4)])
    assert found.ids.tolist() == [[MASK] * 4, [10, 11, 12, 13]]
    found = packed(build(3, 4), short, spans=[range(0), range(4)])
    assert found.ids.tolist() == [[MASK] * 4, [10, 11, 12, 13]]
    assert found.limits.min() == 1
    assert found.columns.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]  # padding goes after the window


def test_rows_of_one_length_that_are_in_the_cache_need_no_mask():
    rows = [build(4, 4, True), build(4, 4, True, 10)]
    assert not packed(*rows).open
    for row in rows:
        row.kept = row.window
    assert packed(*rows).open
    assert packed(*rows).start == 4
    rows.append(build(5, 4, True, 20))
    rows[2].kept = 5
    assert not packed(*rows).open


def test_an_answer_goes_on_after_the_largest_position():
    """The axes of an image end at different positions; the text after it starts after the largest."""
    position = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3], [0, 1, 1, 2]])
    prompt = Prompt.build(torch.ones(4).long(), position, torch.zeros(4).long(), True, False)
    canvas = BlockCanvas(prompt, MASK, 2, 1, 2)
    assert [axis[4:] for axis in canvas.run(range(6)).positions] == [[4, 5]] * 3


def test_masks_after_the_last_position_share_it():
    prompt = Prompt.build(torch.ones(4).long(), torch.arange(4)[None], torch.arange(4), True, True, most_positions=6)
    assert prompt.room == 2
    assert BlockCanvas(prompt, MASK, 4, 1, 4).run(range(8)).positions == [[0, 1, 2, 3, 4, 5, 5, 5]]


def test_a_prompt_of_several_parts_keeps_its_grid():
    blocks = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])  # parts of 5, 2 and 1 tokens
    prompt = Prompt.build(torch.arange(8), torch.arange(8)[None], blocks, True, False)
    canvas = BlockCanvas(prompt, MASK, 4, 1, 4)
    assert canvas.run(canvas.span).limits == [4, 4, 4, 4, 5, 7, 7, 8, 12, 12, 12, 12]
