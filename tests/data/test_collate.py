"""Batches: rows padded on the right, media in order, and noisy image tokens that know their clean twins."""

import pytest
import torch
from helpers import conversation, some_records

from diffusionvl import DiffusionVLConfig, RowDataset
from diffusionvl.data.collate import collate, concatenate
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.streams import IGNORED, build_row

PAD, PICTURE, FILM = 0, 7, 8
MEDIA = ("pixel_values", "image_grid_thw")


def hand_row(input_ids, labels, index, **media):
    """A row of one block; a label is 1 for a supervised token and 0 for another."""
    ids, supervised = torch.tensor(input_ids), torch.tensor(labels).bool()
    positions = torch.arange(5, 5 + len(ids)).expand(3, -1)
    labels = ids.masked_fill(~supervised, IGNORED)
    row = build_row(ids, labels, torch.zeros_like(ids), positions, len(ids), fill_id=1)
    row.index, row.media = index, media
    return row


def dataset_of(folder, processor, records, max_length=None, **changes):
    config = DiffusionVLConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return RowDataset(records, ConversationEncoder(processor, max_length=max_length), config)


def test_a_batch_written_out():
    rows = [hand_row([7, 3, 1], [0, 1, 1], 4), hand_row([2, 1], [0, 1], 9)]
    batch = collate([[row] for row in rows], PAD, [PICTURE])
    expected = {
        "input_ids": [[7, 3, 1, PAD, 3, 1], [2, 1, 2, 1, PAD, PAD]],
        "labels": [[IGNORED] * 4 + [3, 1], [IGNORED] * 3 + [1] + [IGNORED] * 2],
        "block_ids": [[0] * 6, [0] * 6],
        "stream_ids": [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]],
        "document_ids": [[0] * 6, [1, 1, 1, 1, -1, -1]],
        "position_ids": [[[5, 6, 7, 5, 6, 7], [5, 6, 5, 6, 0, 0]]] * 3,
        "twins": [[0, 1, 2, 0, 1, 2], [6, 7, 6, 7, 6, 6]],
        "media_twins": [[3], [0]],
        "rows": [4, 9],
    }
    assert {name: value.tolist() for name, value in batch.items()} == expected
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_twins_are_indices_into_the_flattened_batch():
    rows = [hand_row([2, 1], [0, 1], 0), hand_row([2, 7, 8, 7, 1], [0, 0, 0, 0, 1], 1)]
    batch = collate([[row] for row in rows], PAD, [PICTURE, FILM])
    assert batch["media_twins"].tolist() == [[16, 17, 18], [11, 12, 13]]
    assert batch["input_ids"].flatten()[batch["media_twins"]].tolist() == [[PAD] * 3, [7, 8, 7]]
    assert collate([[row] for row in rows], PAD, [FILM])["media_twins"].tolist() == [[17], [12]]
    assert collate([[row] for row in rows], PAD, [])["media_twins"].shape == (2, 0)


def test_a_pack_written_out():
    image = torch.ones(1, 2)
    rows = [hand_row([2, 1], [0, 1], 9), hand_row([7, 3, 7, 1], [0, 0, 0, 1], 4, pixel_values=image)]
    batch = collate([rows, [hand_row([5, 1], [0, 1], 0)]], PAD, [PICTURE], pad_to_multiple_of=7)
    expected = {
        "input_ids": [[2, 1, 2, 1, 7, 3, 7, 1, PAD, 3, PAD, 1, PAD, PAD], [5, 1, 5, 1, *[PAD] * 10]],
        "document_ids": [[0] * 4 + [1] * 8 + [-1] * 2, [2] * 4 + [-1] * 10],
        "position_ids": [[[5, 6, 5, 6, *[5, 6, 7, 8] * 2, 0, 0], [5, 6, 5, 6, *[0] * 10]]] * 3,
        "media_twins": [[8, 10], [4, 6]],
        "rows": [9, 4, 0],
        "pixel_values": image.tolist(),
    }
    assert {name: batch[name].tolist() for name in expected} == expected


def test_the_width_of_a_batch():
    rows = [[hand_row([2, 1], [0, 1], 0)]]
    for settings, width in (((1, 0), 4), ((3, 0), 6), ((1, 9), 9), ((4, 9), 12), ((3, 2), 6)):
        assert collate(rows, PAD, [], None, *settings)["labels"].shape == (1, width)


@pytest.mark.parametrize("packs", [[[0, 1, 2]], [[2, 0], [1]], [[1], [2, 0]]])
def test_a_document_is_the_same_in_every_pack(translated_dir, processor, pictures, packs):
    dataset = dataset_of(translated_dir, processor, some_records(pictures), block_origin="absolute", block_size=36)
    items = [dataset[index] for index in range(3)]
    batch = dataset.collate([[items[index] for index in pack] for pack in packs])
    order = [index for pack in packs for index in pack]
    assert batch["rows"].tolist() == order
    assert torch.equal(batch["pixel_values"], torch.cat([items[n].row.media["pixel_values"] for n in order if n < 2]))
    width = batch["input_ids"].shape[1]
    for number, index in enumerate(order):
        alone = dataset.collate([items[index]])
        own, real = batch["document_ids"] == number, alone["document_ids"] == 0
        for name in ("input_ids", "labels", "block_ids", "stream_ids"):
            assert torch.equal(batch[name][own], alone[name][real])
        assert torch.equal(batch["position_ids"][:, own], alone["position_ids"][:, real])
        begin = int(own.flatten().nonzero()[0, 0])
        assert own.flatten()[begin : begin + int(own.sum())].all()
        noisy, clean = batch["media_twins"]
        mine = (noisy >= begin) & (noisy < begin + int(own.sum()))
        assert torch.equal(batch["media_twins"][:, mine] - begin, alone["media_twins"])
        assert torch.equal(noisy // width, clean // width)


def test_a_batch_of_text_holds_a_smallest_image_in_its_padding(translated_dir, processor, pictures):
    dataset = dataset_of(translated_dir, processor, [*some_records(pictures)[2:], conversation(("q", "a"))])
    items = [dataset[0], dataset[1]]
    for packs in ([[items[0]], [items[1]]], [items]):
        batch = dataset.collate(packs)
        image = batch["input_ids"] == processor.image_token_id
        assert image.sum() == batch["image_grid_thw"].prod() // 4 == 4
        assert (batch["document_ids"][image] == -1).all()
        assert (batch["stream_ids"][image] == 0).all()
        assert (batch["labels"][image] == IGNORED).all()
        assert batch["rows"].tolist() == [0, 1]
        assert batch["media_twins"].numel() == 0
        real = batch["document_ids"] != -1
        assert int(real.sum()) == sum(len(item.row) for item in items)


def test_rows_are_left_as_they_are():
    row = hand_row([7, 3, 1], [0, 1, 1], 0)
    before = row.input_ids.clone()
    collate([[row], [hand_row([7] * 5 + [1], [0] * 5 + [1], 1)]], PAD, [PICTURE])
    assert torch.equal(row.input_ids, before)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0), (0, 2)])
def test_media_follow_the_order_of_rows(translated_dir, processor, pictures, order):
    """The last record has text alone, the others images."""
    dataset = dataset_of(translated_dir, processor, some_records(pictures))
    items = [dataset[index] for index in order]
    batch = dataset.collate(items)
    assert batch["rows"].tolist() == list(order)
    for name in MEDIA:
        assert torch.equal(batch[name], torch.cat([item.row.media[name] for item in items if item.row.media]))
    tokens = {0: 16 + 8, 1: 8 + 4, 2: 0}
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(-1)
    assert placeholders.tolist() == [tokens[index] for index in order]


def test_media_of_different_sizes_are_padded_at_the_end():
    small, large = torch.ones(1, 2, 3, 1), 2 * torch.ones(2, 1, 2, 2)
    joined = concatenate([small, large])
    assert joined.shape == (3, 2, 3, 2)
    assert torch.equal(joined[:1, :, :, :1], small)
    assert torch.equal(joined[1:, :1, :2, :], large)
    assert joined.sum() == small.sum() + large.sum()
    assert torch.equal(concatenate([torch.tensor([1, 2]), torch.tensor([3])]), torch.tensor([1, 2, 3]))


def test_a_batch_pads_to_its_longest_row(translated_dir, processor, pictures):
    dataset = dataset_of(translated_dir, processor, some_records(pictures))
    items = [dataset[index] for index in range(3)]
    batch = dataset.collate(items)
    lengths = torch.tensor([len(item.row) for item in items])
    width = int(lengths.max())
    for name in ("input_ids", "labels", "block_ids", "stream_ids", "document_ids"):
        assert batch[name].shape == (3, width)
    assert batch["position_ids"].shape == (3, 3, width)
    padding = torch.arange(width) >= lengths[:, None]
    assert torch.equal(batch["document_ids"] == -1, padding)
    assert (batch["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][padding] == IGNORED).all()


@pytest.mark.parametrize("block_size", [36, 200])
def test_noisy_image_tokens_point_at_the_same_image_token(translated_dir, processor, pictures, block_size):
    dataset = dataset_of(
        translated_dir, processor, some_records(pictures), block_origin="absolute", block_size=block_size
    )
    batch = dataset.collate([dataset[index] for index in (2, 0, 1)])
    noisy, clean = batch["media_twins"]
    width = batch["input_ids"].shape[1]
    assert len(noisy) > 0
    assert torch.equal(noisy // width, clean // width)
    assert (batch["stream_ids"].flatten()[noisy] == 1).all()
    assert (batch["stream_ids"].flatten()[clean] == 0).all()
    assert (batch["input_ids"].flatten()[noisy] == processor.tokenizer.pad_token_id).all()
    assert (batch["input_ids"].flatten()[clean] == processor.image_token_id).all()
    for name in ("block_ids", "position_ids"):
        values = batch[name].flatten(-2)
        assert torch.equal(values[..., noisy], values[..., clean])
    # Every image token of a copied block has a noisy twin.
    copied = {(row, block) for row, block in zip((noisy // width).tolist(), _at(batch, noisy), strict=True)}
    image = ((batch["input_ids"] == processor.image_token_id) & (batch["stream_ids"] == 0)).flatten().nonzero()[:, 0]
    expected = [
        index
        for index, block in zip(image.tolist(), _at(batch, image), strict=True)
        if (index // width, block) in copied
    ]
    assert clean.tolist() == expected


def _at(batch, indices):
    return batch["block_ids"].flatten()[indices].tolist()


def test_dropped_and_truncated_rows_are_counted(translated_dir, processor, pictures):
    records = [conversation(("q", "yes " * 40)), conversation(("q", "a", pictures[0])), conversation(("q", "a"))]
    dataset = dataset_of(translated_dir, processor, records, max_length=20)
    batch = dataset.collate([dataset[index] for index in range(3)])
    assert batch["rows"].tolist() == [0, 2]
    assert (int(batch["truncated"]), int(batch["dropped"])) == (2, 1)


def test_a_batch_that_truncation_empties_carries_no_loss(translated_dir, processor, pictures):
    dataset = dataset_of(translated_dir, processor, [conversation(("q", "a", pictures[0]))], max_length=20)
    batch = dataset.collate([dataset[0]])
    assert (batch["document_ids"] != -1).sum() == 1
    assert (batch["labels"] == IGNORED).all()
    assert (int(batch["truncated"]), int(batch["dropped"])) == (1, 1)
