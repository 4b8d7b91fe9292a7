"""Where the pictures of a record lie: paths, URIs, bytes, the web."""

import base64
import os

import pytest
from PIL import Image
from raw_records import (
    ANSWER,
    parse,
    text,
    with_images,
)

from diffusionvl.data.record import DataError, WebPicture
from diffusionvl.data.record_parser import RecordParser
from diffusionvl.data.references import ImageRoot


def test_pictures_may_be_bytes_or_images(tmp_path):
    """As tables have them."""
    picture = Image.new("RGB", (2, 2))
    stored = [{"bytes": b"1", "path": "x.png"}, {"bytes": None, "path": "x.png"}, b"2", picture]
    record = parse(tmp_path, images=stored, messages=[with_images(4), ANSWER])
    assert record.images == [b"1", str(tmp_path / "x.png"), b"2", picture]
    assert parse(tmp_path, image=b"2", messages=[with_images(1), ANSWER]).images == [b"2"]


INSIDE = ["a.png", "sub/a.png", "sub/../a.png", "./a.png", "..a.png"]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("path", INSIDE)
def test_paths_start_from_the_root(tmp_path, path, given):
    assert ImageRoot(tmp_path, given).locate(path, "x") == os.path.normpath(tmp_path / path)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("path", ["../a.png", "sub/../../a.png", "..", "../root-2/a.png"])
def test_a_relative_path_may_not_leave_the_root(tmp_path, path, given):
    root = ImageRoot(tmp_path / "root", given)
    with pytest.raises(DataError, match=r"^x: image '.*' leaves the folder '.*root'.*; move it, or set image_root"):
        root.locate(path, "x")


def test_an_absolute_path_may_not_leave_a_root_that_the_user_named(tmp_path):
    inside, outside = str(tmp_path / "root/a.png"), str(tmp_path / "root-2/a.png")
    for given in (True, False):
        assert ImageRoot(tmp_path / "root", given).locate(inside, "x") == inside
    assert ImageRoot(tmp_path / "root").locate(outside, "x") == outside
    assert ImageRoot(tmp_path.parents[-1], given=True).locate(outside, "x") == outside
    with pytest.raises(DataError, match="leaves the folder"):
        ImageRoot(tmp_path / "root", given=True).locate(outside, "x")


def test_a_relative_root_is_a_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ImageRoot(type(tmp_path)("data")).locate("a.png", "x") == "data/a.png"
    assert ImageRoot(type(tmp_path)()).locate("a.png", "x") == "a.png"
    with pytest.raises(DataError, match="leaves the folder"):
        ImageRoot(type(tmp_path)()).locate("../a.png", "x")


ONE_PIXEL = base64.b64encode(b"picture").decode()
PICTURES = {
    "path": ({"path": "a.png"}, "a.png"),
    "url": ({"url": "a.png"}, "a.png"),
    "image_url": ({"image_url": {"url": "a.png"}}, "a.png"),
    "image_url as text": ({"image_url": "a.png"}, "a.png"),
    "image_url with a detail": ({"image_url": {"url": "a.png", "detail": "auto"}}, "a.png"),
    "a file's URI": ({"url": "file:///root/a%20b.png"}, "/root/a b.png"),
    "a data URI": ({"image": f"data:image/png;base64,{ONE_PIXEL}"}, b"picture"),
    "a data URI in image_url": ({"image_url": {"url": f"data:image/png;base64,{ONE_PIXEL}"}}, b"picture"),
    "Qwen's data URI": ({"image": f"data:image;base64,{ONE_PIXEL}"}, b"picture"),
    "base64": ({"base64": ONE_PIXEL}, b"picture"),
    "base64 in lines": ({"base64": f"{ONE_PIXEL[:4]}\n{ONE_PIXEL[4:]}"}, b"picture"),
    "bytes": ({"image": {"bytes": b"picture", "path": "a.png"}}, b"picture"),
}


NAMED = [(kind, case) for kind in ("image", "image_url") for case in PICTURES]
NAMED += [(None, case) for case, (said, _) in PICTURES.items() if said.keys() & {"image", "image_url"}]


@pytest.mark.parametrize(("kind", "case"), NAMED)
def test_a_part_may_name_its_picture_in_many_ways(tmp_path, kind, case):
    said, expected = PICTURES[case]
    part = said if kind is None else {"type": kind, **said}
    record = parse(tmp_path, messages=[{"role": "user", "content": [part, text("q")]}, ANSWER])
    assert record.images == [str(tmp_path / expected) if expected == "a.png" else expected]


def test_a_picture_on_the_web_waits_until_it_is_allowed(tmp_path):
    parser = RecordParser(ImageRoot(tmp_path, given=True, allow_web=True))
    record = parser.parse({"messages": [with_images(1), ANSWER], "image": "https://a.org/b.png"}, "x")
    assert record.images == [WebPicture("https://a.org/b.png")]
