"""WebDataset archives: samples by index, images as they stand in the archive."""

import tarfile

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
        ("a/._1.json", b"what macOS adds"),
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
        ([("0.json", RECORD | {"images": []})], r"x\.tar:1: 0 image\(s\) for 1 place"),
        ([("0.json", [1])], r"x\.tar:1: a record must be an object"),
        ([], r"x\.tar: holds no records"),
        ([("0.txt", b"x")], r"x\.tar:1: the sample holds '0\.txt', which is neither a record nor an image"),
    ],
)
def test_a_bad_sample_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read_records([write_archive(tmp_path / "x.tar", files)])[0]


def test_an_archive_that_can_not_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.tar: cannot be read .*; give a \.tar archive that is not compressed"):
        read_records([write_archive(tmp_path / "x.tar", [("0.json", RECORD)], "w:gz")])
    with pytest.raises(DataError, match=r"none\.tar: cannot be read \(No such file"):
        read_records([str(tmp_path / "none.tar")])


def two(**more):
    content = [{"type": "image", **more.pop("first", {})}, {"type": "image", **more.pop("second", {})}]
    return {"messages": [{"role": "user", "content": content}, RECORD["messages"][1]], **more}


@pytest.mark.parametrize(
    ("record", "order"),
    [
        (two(images=["s.page2.png", "s.page10.png"]), b"2A"),
        (two(images=["page2.png", "page10.png"]), b"2A"),
        (two(images=["./scans/page10.png", "scans/page2.png"]), b"A2"),
        (two(first={"image": "page2.png"}, second={"path": "page10.png"}), b"2A"),
        (two(images=["page2.png", "page10.png"], first={"index": 1}, second={"index": 0}), b"A2"),
        (two(), b"2A"),
        (two(first={"max_pixels": 9}), b"2A"),
        ({"query": "q", "response": "a"}, b"2A"),
    ],
)
def test_names_decide_which_image_stands_where(tmp_path, record, order):
    """A sorted archive has page10 in front of page2."""
    files = [("s.json", record), ("s.page10.png", b"A"), ("s.page2.png", b"2")]
    (found,) = read_records([write_archive(tmp_path / "x.tar", files)])
    assert b"".join(getattr(image, "source", image) for image in found.images) == order


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            two(images=["page2.png", "page3.png"]),
            r"holds no image 'page3.png'; it holds \['s.page10.png', 's.page2.png'\]",
        ),
        (two(images=["page2.png", "page2.png"]), r"shows nothing of \['s.page10.png'\]"),
        (RECORD | {"image": "page2.png"}, r"shows nothing of \['s.page10.png'\]"),
        (RECORD, r"2 image\(s\) for 1 place"),
        ({"messages": [{"role": "user", "content": "q"}, RECORD["messages"][1]]}, r"2 image\(s\) for 0 place"),
    ],
)
def test_images_that_a_record_does_not_show_are_an_error(tmp_path, record, message):
    files = [("s.json", record), ("s.page10.png", b"A"), ("s.page2.png", b"2")]
    with pytest.raises(DataError, match=message):
        read_records([write_archive(tmp_path / "x.tar", files)])


def test_one_image_is_shown_for_one_name_only(tmp_path):
    with pytest.raises(DataError, match=r"the sample holds no image 'elsewhere/b\.png'"):
        read_records(
            [write_archive(tmp_path / "x.tar", [("s.json", two(images=["a.png", "elsewhere/b.png"])), ("s.png", b"A")])]
        )


def test_an_image_that_is_there_twice_is_an_error(tmp_path):
    path = write_archive(tmp_path / "x.tar", [("s.json", RECORD), ("s.png", b"A"), ("s.png", b"B")])
    with pytest.raises(DataError, match="an image of one name twice"):
        read_records([path])


def test_numbers_in_names_may_have_any_length(tmp_path):
    digits = ["9" * 120, "10", "0" * 100 + "3"]
    record = {"query": "q", "response": "a"}
    files = [("s.json", record), *((f"s.{own}.png", own[-1:].encode()) for own in digits)]
    (found,) = read_records([write_archive(tmp_path / "x.tar", files)])
    assert found.images == [b"3", b"0", b"9"]


@pytest.mark.parametrize("name", ["s.heic", "s.txt", "s.mp4", "s.cls"])
def test_a_file_that_is_not_read_is_an_error(tmp_path, name):
    path = write_archive(tmp_path / "x.tar", [("s.json", RECORD), ("s.png", b"A"), (name, b"x")])
    with pytest.raises(
        DataError, match=rf"x\.tar:1: the sample holds '{name}', which is neither a record nor an image"
    ):
        read_records([path])


def test_a_link_or_a_cut_archive_is_an_error(tmp_path):
    path = write_archive(tmp_path / "x.tar", [("s.json", RECORD)])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("s.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"the sample holds 's\.png', which is neither"):
        read_records([path])
    path = write_archive(tmp_path / "y.tar", [("s.json", RECORD), ("s.png", b"A" * 2000)])
    with open(path, "r+b") as file:
        file.truncate(2048)
    with pytest.raises(DataError, match=r"y\.tar.*(ends inside|cannot be read)"):
        read_records([path])


def test_a_jfif_file_is_an_image(tmp_path):
    (record,) = read_records([write_archive(tmp_path / "x.tar", [("s.json", RECORD), ("s.JFIF", b"A")])])
    assert record.images == [b"A"]
