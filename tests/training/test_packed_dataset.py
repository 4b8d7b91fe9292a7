"""Packed rows: documents are measured without decoding images, and packed by what was measured."""

from pathlib import Path

import numpy as np
import pytest
from helpers import QUESTION, conversation, some_records

from diffusionvl import DiffusionVLConfig, RowDataset
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import DataError
from diffusionvl.training import BlockDiffusionConfig, PackedRowDataset, measure_rows
from diffusionvl.training.checks import check_rows
from diffusionvl.training.packed_dataset import BAD


def dataset_of(folder, processor, records, max_length=None, supervision="assistant", **settings):
    config = DiffusionVLConfig.from_pretrained(folder)
    for name in ("block_origin", "block_size"):
        if name in settings:
            setattr(config, name, settings.pop(name))
    return RowDataset(records, ConversationEncoder(processor, supervision, max_length), config, **settings)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("max_length", [None, 60, 20])
@pytest.mark.parametrize("supervision", ["assistant", "structural"])
@pytest.mark.parametrize(("block_origin", "block_size"), [("response", 8), ("absolute", 7)])
def test_a_measure_is_the_length(
    translated_dir, processor, pictures, block_origin, block_size, supervision, max_length, views
):
    settings = {"block_origin": block_origin, "block_size": block_size, "views": views}
    rows = dataset_of(translated_dir, processor, some_records(pictures), max_length, supervision, **settings)
    for index in range(len(rows)):
        row = rows[index].row
        images = 0 if row is None else len(row.media.get("image_grid_thw", []))
        assert rows.measure(index) == (0 if row is None else len(row), images)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_the_measuring(translated_dir, processor, pictures, processes, monkeypatch):
    rows = dataset_of(translated_dir, processor, some_records(pictures) * 3)
    expected = [rows.measure(index) for index in range(9)]
    shares = [[rows.measure(index) for index in range(process, 9, processes)] for process in range(processes)]
    monkeypatch.setattr("diffusionvl.training.packed_dataset.gather_object", lambda own: shares)
    for process in range(processes):
        assert measure_rows(rows, 0, process, processes).tolist() == [list(size) for size in expected]
    assert measure_rows(rows, workers=1).tolist() == [list(size) for size in expected]


def test_a_row_holds_the_documents_of_its_pack(translated_dir, processor, pictures):
    rows = dataset_of(translated_dir, processor, some_records(pictures) * 3)
    sizes = measure_rows(rows)
    packed = PackedRowDataset(rows, sizes, 250, 5)
    found = [packed.documents(index) for index in range(len(packed))]
    assert sorted(index for pack in found for index in pack) == list(range(9))
    assert 1 < len(packed) < 9
    for index, documents in enumerate(found):
        items = packed[index]
        assert [item.row.index for item in items] == documents
        batch = packed.collate([items])
        assert batch["rows"].tolist() == documents
        assert batch["input_ids"].shape == (1, sizes[documents, 0].sum())
        assert sizes[documents, 0].sum() <= 250
        assert len(batch["image_grid_thw"]) == max(sizes[documents, 1].sum(), 1)


def test_a_long_document_stands_alone(translated_dir, processor):
    rows = dataset_of(translated_dir, processor, [conversation(("q", "a")), conversation(("q", "yes " * 60))])
    packed = PackedRowDataset(rows, measure_rows(rows), 50, 1)
    assert (len(packed), packed.long) == (2, 1)
    assert PackedRowDataset(rows, measure_rows(rows), 1000, 1).long == 0


@pytest.fixture
def broken(translated_dir, processor, pictures, tmp_path):
    """A function that makes a data set of five records, the second and the fourth of which miss their picture."""
    gone = str(tmp_path / "gone.png")
    records = [conversation((QUESTION, "yes", gone if n in (1, 3) else pictures[0]), name=f"r{n}") for n in range(5)]
    return lambda allowed: dataset_of(translated_dir, processor, records, max_bad_samples=allowed)


def test_a_bad_record_is_an_error_or_left_out(broken):
    with pytest.raises(DataError, match=r"^r1: image .*gone\.png' does not exist"):
        measure_rows(broken(0))
    with pytest.raises(DataError, match="2 of 5 records cannot be used, more than max_bad_samples=1"):
        measure_rows(broken(1))
    rows = broken(2)
    sizes = measure_rows(rows)
    assert [tuple(size) == BAD for size in sizes.tolist()] == [False, True, False, True, False]
    packed = PackedRowDataset(rows, sizes, 1000, 16)
    assert [packed.documents(index) for index in range(len(packed))] == [[0, 2, 4]]


def test_a_picture_that_breaks_after_the_measuring_is_counted(broken, pictures):
    rows = broken(2)
    packed = PackedRowDataset(rows, measure_rows(rows), 1000, 16)
    whole = Path(pictures[0]).read_bytes()
    for record in rows.records:  # a header tells the size of a picture whose pixels are broken
        for part in record.messages[0]["content"]:
            part.update({"image": whole[: len(whole) // 2]} if part["type"] == "image" else {})
    batch = packed.collate([packed[0]])
    assert int(batch["bad_samples"]) == 3
    assert (batch["labels"] == -100).all()


def test_nothing_to_pack_is_no_row(translated_dir, processor):
    rows = dataset_of(translated_dir, processor, [conversation(("q", "a"))])
    assert len(PackedRowDataset(rows, np.array([BAD]), 100, 1)) == 0


@pytest.mark.parametrize(
    ("packed", "views", "settings", "message"),
    [
        (False, 1, {"complementary": True}, "complementary needs views in pairs, got noisy_views=1"),
        (False, 3, {"complementary": True}, "complementary needs views in pairs, got noisy_views=3"),
        (False, 2, {"objective": "ar"}, "noisy_views=2 needs objective block_diffusion"),
        (True, 1, {"noise_order": "reference"}, "noise_order reference is that of unpacked rows"),
        (False, 2, {"noise_order": "reference"}, "noise_order reference is that of unpacked rows"),
        (True, 1, {"train_sampling_strategy": "group_by_length"}, "'group_by_length' does not fit"),
        (False, 1, {"train_sampling_strategy": "batch_rebalance"}, "'batch_rebalance' does not fit"),
    ],
)
def test_settings_that_do_not_fit_are_refused(translated_dir, processor, tmp_path, packed, views, settings, message):
    rows = dataset_of(translated_dir, processor, [conversation(("q", "a"))], views=views)
    if packed:
        rows = PackedRowDataset(rows, measure_rows(rows), 100, 1)
    with pytest.raises(ValueError, match=message):
        check_rows(rows, BlockDiffusionConfig(output_dir=str(tmp_path), use_cpu=True, **settings))
    check_rows(rows, BlockDiffusionConfig(output_dir=str(tmp_path), use_cpu=True))
