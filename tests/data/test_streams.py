"""Rows: which blocks get a noisy copy, where it stands, and how a response is filled to its block's edge."""

import pytest
import torch
from helpers import conversation, some_records

from diffusionvl import DiffusionVLConfig, RowDataset
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.streams import IGNORED, build_row
from diffusionvl.modeling.block_grid import block_grid

END = 1  # the end-of-turn id of rows that are written out by hand


def hand_row(input_ids, labels, block_size, starts=(), layout="response_only", views=1):
    """A row of given tokens; a label is 1 for a supervised token and 0 for another."""
    ids, supervised = torch.tensor(input_ids), torch.tensor(labels).bool()
    grid = block_grid(len(ids), block_size, list(starts))
    positions = torch.arange(10, 10 + len(ids)).expand(3, -1)
    return build_row(ids, ids.masked_fill(~supervised, IGNORED), grid, positions, block_size, END, layout, views)


def rows_of(folder, processor, records, layout=None, supervision="assistant", max_length=None, **changes):
    """The rows of records, for a config with fields changed."""
    config = DiffusionVLConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    dataset = RowDataset(records, ConversationEncoder(processor, supervision, max_length), config, layout)
    return [dataset[index][0] for index in range(len(records))]


def noisy_part(row):
    noisy = row.stream_ids == 1
    assert torch.equal(noisy, noisy.sort().values)  # after the clean stream
    return noisy


def test_the_row_drawn_in_the_docstring():
    row = hand_row([50, 51, 52, 53, 54, 60, 61, 62, 63, END], [0] * 5 + [1] * 5, 4, starts=[5])
    assert row.input_ids.tolist() == [50, 51, 52, 53, 54, 60, 61, 62, 63, END, 60, 61, 62, 63, END, END, END, END]
    assert row.labels.tolist() == [IGNORED] * 10 + [60, 61, 62, 63, END, END, END, END]
    assert row.block_ids.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2, 3, 2, 2, 2, 2, 3, 3, 3, 3]
    assert row.stream_ids.tolist() == [0] * 10 + [1] * 8
    assert row.position_ids.tolist() == [[*range(10, 20), *range(15, 23)]] * 3
    assert row.twins.tolist() == [*range(10), 5, 6, 7, 8, 9, 9, 9, 9]


def test_a_block_is_copied_with_the_prompt_that_it_shares():
    row = hand_row([50, 51, 52, 53, 54, 60, 61, END, 70, 71], [0] * 5 + [1] * 3 + [0] * 2, 4)
    assert row.input_ids[10:].tolist() == [54, 60, 61, END]
    assert row.labels[10:].tolist() == [IGNORED, 60, 61, END]


@pytest.mark.parametrize(
    ("input_ids", "labels", "noisy"),
    [
        ([50, 60, END], [0, 1, 1], [50, 60, END, END]),
        ([50, 51, 60, END], [0, 0, 1, 1], [50, 51, 60, END]),
        ([50, 60, 61], [0, 1, 1], [50, 60, 61]),  # cut off before its end of turn
        ([50, END, 51], [0, 0, 0], []),
        ([END, 60], [0, 1], [END, 60]),  # this end of turn carries no loss
        ([50, 60, END, 3], [0, 1, 1, 1], [50, 60, END, 3]),
        ([60, END, 3], [1, 1, 1], [60, END, 3, END]),  # 3 is the newline of structural supervision
        ([50, 51, 60, END, 3], [0, 0, 1, 1, 1], [50, 51, 60, END, 3, END, END, END]),
        ([50, 60, END, 51, 52], [0, 1, 1, 0, 0], [50, 60, END, 51]),
    ],
)
def test_only_an_ended_response_is_filled_to_its_blocks_edge(input_ids, labels, noisy):
    row = hand_row(input_ids, labels, 4)
    length = len(input_ids)
    assert row.input_ids[length:].tolist() == noisy
    fill = max(len(noisy) - length, 0)
    assert row.labels[len(row) - fill :].tolist() == [END] * fill
    assert row.position_ids[0, len(row) - fill :].tolist() == [10 + length + step for step in range(fill)]


@pytest.mark.parametrize("block_size", [1, 2, 8, 500])
@pytest.mark.parametrize("supervision", ["assistant", "structural"])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_both_layouts_supervise_the_same_tokens(
    translated_dir, processor, pictures, block_origin, supervision, block_size
):
    changes = {"block_origin": block_origin, "block_size": block_size}
    records = some_records(pictures)
    some, every = (
        rows_of(translated_dir, processor, records, layout, supervision, **changes)
        for layout in ("response_only", "two_stream")
    )
    for one, two in zip(some, every, strict=True):
        assert torch.equal(one.input_ids[one.stream_ids == 0], two.input_ids[two.stream_ids == 0])
        for name in ("input_ids", "labels", "block_ids", "position_ids", "twins"):
            values = [getattr(row, name)[..., row.labels != IGNORED] for row in (one, two)]
            assert torch.equal(*values)
        assert (one.labels != IGNORED).any()
        assert len(one) <= len(two)


@pytest.mark.parametrize("block_size", [1, 2, 8, 500])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
@pytest.mark.parametrize("max_length", [None, 60])
def test_the_noisy_stream_is_its_clean_twins_and_fill(
    translated_dir, processor, pictures, max_length, block_origin, block_size
):
    changes = {"block_origin": block_origin, "block_size": block_size, "max_length": max_length}
    records = some_records(pictures)
    encoder = ConversationEncoder(processor, max_length=max_length)
    filled = 0
    for record, row in zip(records, rows_of(translated_dir, processor, records, **changes), strict=True):
        encoded = encoder.encode(record)
        length = len(encoded.input_ids)
        noisy = noisy_part(row)
        assert torch.equal(row.input_ids[~noisy], encoded.input_ids)
        assert (row.labels[~noisy] == IGNORED).all()
        grid = row.block_ids[:length]
        for block in grid.unique():
            clean = (grid == block).nonzero()[:, 0]
            copies = (noisy & (row.block_ids == block)).nonzero()[:, 0]
            if (encoded.labels[clean] == IGNORED).all():
                assert not len(copies)
                continue
            own, fill = copies[: len(clean)], copies[len(clean) :]
            assert torch.equal(row.twins[own], clean)
            assert torch.equal(row.input_ids[own], encoded.input_ids[clean])
            assert torch.equal(row.labels[own], encoded.labels[clean])
            assert torch.equal(row.position_ids[:, own], row.position_ids[:, clean])
            last = encoded.labels[clean[-1]]
            ended = last == processor.tokenizer.eos_token_id
            assert len(fill) == (block_size - len(clean) if ended else 0)
            assert (row.labels[fill] == last).all()
            assert (row.input_ids[fill] == last).all()
            assert torch.equal(row.position_ids[:, fill] - row.position_ids[:, clean[-1:]], _counted(fill))
            filled += len(fill)
    assert (filled > 0) == (block_size > 1)


def _counted(fill):
    return torch.arange(1, len(fill) + 1).expand(3, -1)


def test_a_truncated_response_has_no_fill(translated_dir, processor, pictures):
    record = some_records(pictures)[1]
    (full,) = rows_of(translated_dir, processor, [record])
    clean = int((full.stream_ids == 0).sum())
    (cut,) = rows_of(translated_dir, processor, [record], max_length=clean - 1)
    noisy = noisy_part(cut)
    assert int((~noisy).sum()) == clean - 1
    answer = int((ConversationEncoder(processor, max_length=clean - 1).encode(record).labels != IGNORED).sum())
    assert int(noisy.sum()) == answer
    assert answer % 8
    assert processor.tokenizer.eos_token_id not in cut.labels
    assert int(noisy_part(full).sum()) % 8 == 0


@pytest.mark.parametrize("block_size", [2, 8, 500])
@pytest.mark.parametrize(("block_origin", "mixes"), [("response", False), ("absolute", True)])
def test_with_response_origin_no_block_mixes_turns(
    translated_dir, processor, pictures, block_origin, mixes, block_size
):
    record = some_records(pictures)[0]
    (row,) = rows_of(translated_dir, processor, [record], block_origin=block_origin, block_size=block_size)
    supervised = ConversationEncoder(processor).encode(record).labels != IGNORED
    turns = (supervised[1:] != supervised[:-1]).cumsum(0)
    turns = torch.cat([torch.zeros(1, dtype=torch.long), turns])  # prompt 0, response 1, prompt 2, ...
    assert turns.max() == 5
    grid = row.block_ids[: len(turns)]
    together = [turns[grid == block].unique() for block in grid.unique()]
    assert any(len(several) > 1 for several in together) == mixes
    if not mixes:
        first_blocks = [int((turns == turn).nonzero()[0, 0]) for turn in (1, 3, 5)]
        assert all(grid[first] > grid[first - 1] for first in first_blocks)


def test_blocks_of_one_token_copy_the_response_alone(translated_dir, processor):
    record = conversation(("what shape is in the image?", "circle"))
    for block_origin in ("response", "absolute"):
        (row,) = rows_of(translated_dir, processor, [record], block_size=1, block_origin=block_origin)
        assert processor.tokenizer.decode(row.input_ids[noisy_part(row)]) == "circle<|im_end|>"
        assert len(row.block_ids.unique()) == int((row.stream_ids == 0).sum())


@pytest.mark.parametrize(
    ("block_origin", "start"),
    [("response", "no"), ("absolute", "<|im_start|>user\nred?<|im_end|>\n<|im_start|>assistant\nno")],
)
def test_a_block_larger_than_everything(translated_dir, processor, block_origin, start):
    record = conversation(("red?", "no"))
    (row,) = rows_of(translated_dir, processor, [record], block_size=64, block_origin=block_origin)
    noisy = noisy_part(row)
    text = processor.tokenizer.decode(row.input_ids[noisy])
    assert int(noisy.sum()) == 64
    assert text.startswith(start)
    ends = text.removeprefix(start)
    assert ends == "<|im_end|>" * int((row.labels == processor.tokenizer.eos_token_id).sum())


def test_an_empty_response_is_one_block_of_ends(translated_dir, processor):
    (row,) = rows_of(translated_dir, processor, [conversation(("red?", ""))])
    assert row.labels[noisy_part(row)].tolist() == [processor.tokenizer.eos_token_id] * 8


@pytest.mark.parametrize("layout", ["response_only", "two_stream"])
def test_a_row_without_supervision(layout):
    row = hand_row([50, 51, 52], [0, 0, 0], 2, layout=layout)
    assert len(row) == (3 if layout == "response_only" else 6)
    assert (row.labels == IGNORED).all()


def test_the_clean_layout_supervises_in_place():
    row = hand_row([50, 60, END], [0, 1, 1], 4, layout="clean")
    assert row.input_ids.tolist() == [50, 60, END]
    assert row.labels.tolist() == [IGNORED, 60, END]
    assert row.stream_ids.tolist() == [0, 0, 0]


def test_views_are_copies_one_after_another():
    ids, labels = [50, 51, 60, 61, END], [0, 0, 1, 1, 1]
    one, three = hand_row(ids, labels, 2), hand_row(ids, labels, 2, views=3)
    noisy = slice(5, len(one))
    for name in ("input_ids", "labels", "block_ids", "position_ids", "twins"):
        own = getattr(one, name)
        assert torch.equal(getattr(three, name), torch.cat([own, *[own[..., noisy]] * 2], dim=-1))
    assert three.stream_ids.tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 4


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"layout must be one of .*'two_stream'.*, got 'both'"):
        hand_row([50, 60], [0, 1], 2, layout="both")
