"""Images: upright RGB from paths, bytes and pictures, and one clear error for what is no ordinary picture."""

import io

import numpy as np
import pytest
from helpers import build_picture
from PIL import Image, ImageFile, features

from diffusionvl.data.images import FORMATS, image_size, open_image
from diffusionvl.data.record import DataError


def test_a_missing_image_names_its_path_and_the_remedy(tmp_path):
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=r"test: image .*none\.png' does not exist; check 'image_root'") as error:
            read(str(tmp_path / "none.png"), "test")
        assert error.value.kind == "missing image"


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("kind", ["text", "empty", "half", "bad chunk", "folder"])
def test_an_image_that_can_not_be_read_is_refused(tmp_path, monkeypatch, kind, tolerant):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)  # lmms-eval sets it for the whole process
    path = tmp_path / "bad.png"
    if kind == "folder":
        path.mkdir()
    else:
        Image.fromarray(build_picture((200, 200))).save(path)
        content = path.read_bytes()
        second = content.rindex(b"IDAT")
        assert second > content.index(b"IDAT")
        bad = {"text": b"hello", "empty": b"", "half": content[: len(content) // 2]}
        path.write_bytes(bad.get(kind, content[:second] + b"\x00\x01\x02\x03" + content[second + 4 :]))
    with pytest.raises(DataError, match=r"test: image .*bad\.png' cannot be read: .*; replace it") as error:
        open_image(str(path), "test")
    assert error.value.kind == "bad image"
    if kind != "folder":
        with pytest.raises(DataError, match=r"test: image stored in the record cannot be read: .*; replace it"):
            open_image(path.read_bytes(), "test")
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("limit", [3000, 1000])
def test_a_decompression_bomb_is_refused(pictures, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # above it Pillow warns, above twice that it raises
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=r"test: image .*0.png' is too large: .*4096 pixels.*; scale it down"):
            read(pictures[0], "test")


def test_no_other_program_is_run_to_read_an_image(tmp_path):
    """Pillow hands PostScript to Ghostscript."""
    assert "EPS" not in FORMATS
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path, "EPS")
    with pytest.raises(DataError, match="cannot be read: cannot identify image file"):
        open_image(str(path), "test")


@pytest.mark.parametrize("path", ["a\0.png", "https://example.org/a.png", "x" * 5000])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(DataError, match="image '"):
        open_image(path, "test")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, kind)
    opened = open_image(file.getvalue(), "test")
    assert (opened.mode, opened.size, image_size(file.getvalue(), "test")) == ("RGB", (8, 4), (4, 8))
    assert opened.getpixel((0, 0))[0] > 250 > 10 > opened.getpixel((0, 0))[1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_opened_as_rgb(tmp_path, mode):
    path = str(tmp_path / "image.tiff")
    Image.new(mode, (8, 4)).save(path)
    opened = open_image(path, "test")
    assert (opened.mode, opened.size) == ("RGB", (8, 4))


def test_a_picture_is_taken_as_it_is():
    picture = Image.new("L", (8, 4))
    assert open_image(picture, "test").mode == "RGB"
    assert image_size(picture, "test") == (4, 8)


@pytest.mark.parametrize(("orientation", "upright"), [(1, (20, 10)), (3, (20, 10)), (6, (10, 20)), (8, (10, 20))])
def test_a_photo_is_turned_upright(tmp_path, orientation, upright):
    photo = Image.new("RGB", (20, 10), "red")
    exif = photo.getexif()
    exif[0x0112] = orientation  # 6 and 8: the camera was held upright
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(str(tmp_path / "a.jpg"), "test").size == upright
    assert image_size(str(tmp_path / "a.jpg"), "test") == upright[::-1]


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.array([[0, 257 * 128, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.array(open_image(str(tmp_path / "a.png"), "test"))[0, :, 0].tolist() == [0, 128, 255]
