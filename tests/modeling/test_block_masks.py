"""The mask: the predicate against nested loops, and its tensor forms against the predicate."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from diffusionvl.modeling.block_grid import block_firsts, block_grid, block_starts, keep_whole
from diffusionvl.modeling.block_masks import CLEAN, PADDING, TokenTags, dense_mask, flex_mask, within_window


def slowly(tags, batch):
    """The rule of BD3-LM's section 3.2, one pair of tokens at a time."""
    length = tags.block.shape[1]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            q_block, q_stream, q_document = (int(tag[batch, q]) for tag in tags)
            k_block, k_stream, k_document = (int(tag[batch, k]) for tag in tags)
            if q_document != k_document:
                continue
            if k_stream == CLEAN:
                seen[q, k] = k_block <= q_block if q_stream == CLEAN else k_block < q_block
            else:
                seen[q, k] = q_stream == k_stream and q_block == k_block
    return seen


def random_tags(length=96, batch=3):
    """Several documents, up to two noisy copies, and padding behind."""
    document = torch.randint(0, 3, (batch, length)).sort(dim=1).values
    document[:, length - 9 :] = PADDING
    stream = torch.randint(0, 3, (batch, length))
    return TokenTags(torch.randint(0, 6, (batch, length)), stream, document)


def test_dense_mask_is_the_rule():
    tags = random_tags()
    mask = dense_mask(tags)
    assert mask.shape == (3, 1, 96, 96)
    for batch in range(3):
        assert torch.equal(mask[batch, 0], slowly(tags, batch))
    assert mask.any(-1).sum() > 0


def test_drawing_of_the_docstring():
    tags = TokenTags(
        torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1]]), torch.tensor([[0] * 4 + [1] * 4]), torch.zeros(1, 8).long()
    )
    drawing = ["11000000"] * 2 + ["11110000"] * 2 + ["00001100"] * 2 + ["11000011"] * 2
    assert ["".join(str(int(x)) for x in row) for row in dense_mask(tags)[0, 0]] == drawing


def test_drawing_of_a_causal_clean_stream():
    tags = TokenTags(
        torch.tensor([[0, 1, 2, 3, 0, 0, 2, 2]]), torch.tensor([[0] * 4 + [1] * 4]), torch.zeros(1, 8).long()
    )
    drawing = ["10000000", "11000000", "11100000", "11110000"] + ["00001100"] * 2 + ["11000011"] * 2
    assert ["".join(str(int(x)) for x in row) for row in dense_mask(tags)[0, 0]] == drawing


def test_drawing_of_a_window():
    tags = TokenTags(
        torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1]]), torch.tensor([[0] * 4 + [1] * 4]), torch.zeros(1, 8).long()
    )
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    drawing = ["11000000"] * 2 + ["01110000", "00110000"] + ["00001100"] * 2 + ["01000011", "00000011"]
    mask = within_window(dense_mask(tags), positions, positions, 2)
    assert ["".join(str(int(x)) for x in row) for row in mask[0, 0]] == drawing
    for wide in (4, None):  # a row that is not longer than the window
        assert torch.equal(within_window(dense_mask(tags), positions, positions, wide), dense_mask(tags))


def test_queries_may_be_the_last_of_the_keys():
    tags = random_tags()
    tail = TokenTags(*(tag[:, 70:] for tag in tags))
    assert torch.equal(dense_mask(tail, tags), dense_mask(tags)[:, :, 70:])


@pytest.mark.parametrize("length", [128, 200])
@pytest.mark.filterwarnings("ignore::UserWarning")  # flex_attention warns that it is not compiled
def test_flex_mask_is_the_rule(length):
    tags = random_tags(length)
    dense = dense_mask(tags)
    flex = flex_mask(tags)
    tile = 128
    padded = torch.nn.functional.pad(dense, (0, -length % tile, 0, -length % tile))
    tiles = padded.unflatten(3, (-1, tile)).unflatten(2, (-1, tile)).transpose(3, 4).flatten(4).any(-1)
    assert torch.equal(flex.to_dense().bool(), tiles)
    query, key, value = torch.randn(3, 3, 2, length, 16)  # three of [B, heads, T, head size]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    found = flex_attention(query, key, value, block_mask=flex)
    seeing = dense.any(-1)[..., None].expand_as(found)  # a noisy padding token alone in its block sees nothing else
    torch.testing.assert_close(found[seeing], expected[seeing], rtol=1e-4, atol=1e-5)


def test_flex_mask_skips_tiles():
    length = 512
    blocks = torch.arange(length)[None] // 8
    tags = TokenTags(blocks, torch.zeros(1, length).long(), torch.zeros(1, length).long())
    assert flex_mask(tags).sparsity() > 0


@pytest.mark.parametrize(
    ("length", "starts", "expected"),
    [
        (7, [], [0, 0, 0, 1, 1, 1, 2]),
        (7, [4], [0, 0, 0, 1, 2, 2, 2]),
        (8, [2, 3], [0, 0, 1, 2, 2, 2, 3, 3]),
        (3, [3], [0, 0, 0]),
        (0, [], []),
    ],
)
def test_block_grid(length, starts, expected):
    assert block_grid(length, 3, starts).tolist() == expected


@pytest.mark.parametrize(
    ("tokens", "before", "after"),
    [
        ("ttiiiiitt", "000011112", "001111112"),
        ("iiii", "0011", "1111"),
        ("tttt", "0011", "0011"),
        ("itiiti", "001122", "001122"),
        ("tiitiiit", "00112233", "01113333"),
    ],
)
def test_images_stay_whole(tokens, before, after):
    blocks = torch.tensor([int(block) for block in before])
    inside = torch.tensor([token == "i" for token in tokens])
    assert "".join(str(int(block)) for block in keep_whole(blocks, inside)) == after


def test_block_starts():
    header, eos = [7, 8], [9]
    #      user   header  answer  eos  user  header answer eos
    ids = [1, 2, 7, 8, 3, 3, 9, 1, 7, 8, 5, 9]
    assert block_starts(ids, header, eos) == [4, 7, 10, 12]
    assert block_starts([7, 8, 7, 8, 3], header, eos) == [2]  # a header inside a response opens nothing
    assert block_starts(ids, [], eos) == []


def test_a_noisy_block_has_the_number_of_its_first_clean_token():
    blocks = block_grid(7, 3, [4])
    assert blocks.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert block_firsts(blocks).tolist() == [0, 0, 0, 3, 4, 4, 4]
