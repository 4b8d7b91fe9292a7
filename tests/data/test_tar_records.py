"""WebDataset archives: samples by index, images as they stand in the archive."""

import pytest
from helpers import write_archive

from diffusionvl.data.record import DataError
from diffusionvl.data.sources.records import read_records

RECORD = {"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]}


def test_samples_are_found_by_index(tmp_path):
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}, RECORD["messages"][1]]
    files = [
        ("0.jpg", b"first"),
        ("0.json", RECORD | {"id": 7, "image": "elsewhere/first.jpg"}),  # what the image was called outside
        ("a/1.x.json", {"messages": two}),
        ("a/1.left.PNG", b"left"),
        ("a/1.right.png", b"right"),
        ("a/1.txt", b"no part of a record"),
        ("b/1.json", {"messages": [{"role": "user", "content": "q"}, RECORD["messages"][1]]}),
    ]
    records = read_records([write_archive(tmp_path / "x.tar", files)])
    assert len(records) == 3
    assert [record.images for record in records] == [[b"first"], [b"left", b"right"], []]
    assert [record.name for record in records] == [
        f"{tmp_path}/x.tar:{n}" + (" (id 7)" if n == 1 else "") for n in (1, 2, 3)
    ]
    with pytest.raises(IndexError):
        records[3]


def test_shards_are_one_data_set(tmp_path):
    for shard in range(3):
        files = [file for n in range(2) for file in ((f"{n}.png", f"{shard}{n}".encode()), (f"{n}.json", RECORD))]
        write_archive(tmp_path / f"{shard}.tar", files)
    records = read_records([str(tmp_path / "*.tar")])
    assert [record.images for record in records] == [[f"{shard}{n}".encode()] for shard in range(3) for n in range(2)]


def test_a_sample_without_images_may_name_files(tmp_path):
    path = write_archive(tmp_path / "x.tar", [("0.json", RECORD | {"images": ["a.png"]})])
    assert read_records([path], "/root")[0].images == ["/root/a.png"]
    with pytest.raises(DataError, match=r"x\.tar:1: image '\.\./a\.png' leaves"):
        read_records([write_archive(tmp_path / "x.tar", [("0.json", RECORD | {"images": ["../a.png"]})])])[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("0.jpg", b"x")], r"x\.tar:1: the sample has 0 \.json files"),
        ([("0.a.json", RECORD), ("0.b.json", RECORD)], r"x\.tar:1: the sample has 2 \.json files"),
        ([("0.json", b"{")], r"x\.tar:1:1: broken JSON at column 2"),
        ([("0.json", RECORD | {"images": []})], r"x\.tar:1: fewer images than places"),
        ([("0.json", [1])], r"x\.tar:1: a record must be an object"),
        ([], r"x\.tar: holds no records"),
        ([("0.txt", b"x")], r"x\.tar: holds no records"),
    ],
)
def test_a_bad_sample_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read_records([write_archive(tmp_path / "x.tar", files)])[0]


def test_an_archive_that_can_not_be_read_is_refused(tmp_path):
    for path in (write_archive(tmp_path / "x.tar", [("0.json", RECORD)], "w:gz"), str(tmp_path / "none.tar")):
        with pytest.raises(DataError, match=r"\.tar: cannot be read .*; give a \.tar archive that is not compressed"):
            read_records([path])
