"""Images: upright RGB from paths, bytes and pictures, and one clear error for what is no ordinary picture."""

import io
import os

import numpy as np
import pytest
from helpers import build_picture
from PIL import Image, ImageFile, features
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from diffusionvl.data import images
from diffusionvl.data.images import FORMATS, image_size, open_image
from diffusionvl.data.record import DataError, SizedPicture, WebPicture
from diffusionvl.data.web import WebPolicy


def test_a_missing_image_names_its_path_and_the_remedy(tmp_path):
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=r"test: image .*none\.png' does not exist; check 'image_root'") as error:
            read(str(tmp_path / "none.png"), "test")
        assert error.value.kind == "missing image"


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("kind", ["text", "empty", "half", "bad chunk"])
def test_an_image_that_can_not_be_read_is_refused(tmp_path, monkeypatch, kind, tolerant):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)  # lmms-eval sets it for the whole process
    path = tmp_path / "bad.png"
    Image.fromarray(build_picture((200, 200))).save(path)
    content = path.read_bytes()
    second = content.rindex(b"IDAT")
    assert second > content.index(b"IDAT")
    bad = {"text": b"hello", "empty": b"", "half": content[: len(content) // 2]}
    path.write_bytes(bad.get(kind, content[:second] + b"\x00\x01\x02\x03" + content[second + 4 :]))
    with pytest.raises(DataError, match=r"test: image .*bad\.png' cannot be read: .*; replace it") as error:
        open_image(str(path), "test")
    assert error.value.kind == "bad image"
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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_images_of_every_mode_are_opened_as_rgb(tmp_path, mode):
    path = str(tmp_path / "image.tiff")
    Image.new(mode, (8, 4)).save(path)
    opened = open_image(path, "test")
    assert (opened.mode, opened.size) == ("RGB", (8, 4))


def inked(mode):
    """Black ink on a ground that is black, too, but transparent."""
    clear, ink = {"RGBA": ((0, 0, 0, 0), (0, 0, 0, 255)), "LA": ((0, 0), (0, 255)), "P": (0, 1)}[mode]
    picture = Image.new(mode, (8, 8), clear)
    if mode == "P":
        picture.putpalette([0, 0, 0] * 256)
    picture.paste(ink, (2, 2, 4, 4))
    return picture


@pytest.mark.parametrize(
    ("mode", "suffix", "settings"),
    [
        ("RGBA", "png", {}),
        ("LA", "png", {}),
        ("P", "png", {"transparency": 0}),
        ("P", "gif", {"transparency": 0}),
        ("RGBA", "webp", {"lossless": True}),
        ("RGBA", "tif", {}),
    ],
)
def test_what_is_transparent_is_white(tmp_path, mode, suffix, settings):
    picture, path = inked(mode), str(tmp_path / f"a.{suffix}")
    picture.save(path, **settings)
    picture.info |= settings
    for given in (path, Image.open(path)):
        pixels = np.array(open_image(given, "test"))
        assert pixels[0, 0].tolist() == [255] * 3
        assert pixels[2, 2].tolist() == [0] * 3


def test_half_transparent_ink_is_half_white():
    assert open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "test").getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_gray_of_sixteen_bits_is_white(tmp_path):
    Image.fromarray(np.array([[7, 65535, 0]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=7)
    assert np.array(open_image(str(tmp_path / "a.png"), "test"))[0, :, 0].tolist() == [255, 255, 0]


def test_a_picture_is_taken_as_it_is():
    picture = Image.new("L", (8, 4))
    assert open_image(picture, "test").mode == "RGB"
    assert image_size(picture, "test") == (4, 8)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(tmp_path, orientation, suffix):
    photo = Image.new("RGB", (20, 10), "red")
    exif = photo.getexif()
    exif[0x0112] = orientation  # from 5 on: the camera was held upright
    photo.save(tmp_path / f"a.{suffix}", exif=exif)
    upright = (20, 10) if orientation < 5 else (10, 20)
    for given in (str(tmp_path / f"a.{suffix}"), (tmp_path / f"a.{suffix}").read_bytes()):
        assert open_image(given, "test").size == upright
        assert image_size(given, "test") == upright[::-1]
    assert open_image(Image.open(tmp_path / f"a.{suffix}"), "test").size == upright


@pytest.mark.parametrize("late", [True, False])
def test_exif_data_after_the_pixels_of_a_png_file_count(tmp_path, late):
    photo = Image.new("RGB", (20, 10), "red")
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    begin = content.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
    chunk, rest = content[begin:end], content[:begin] + content[end:]
    place = rest.index(b"IEND") - 4 if late else rest.index(b"IDAT") - 4
    assert image_size(rest[:place] + chunk + rest[place:], "test") == (20, 10)
    assert open_image(rest[:place] + chunk + rest[place:], "test").size == (10, 20)


RAMP = np.array([[0, 128, 255]])
DEEP = {
    "16-bit PNG": ("a.png", lambda: Image.fromarray((RAMP * 257).astype(np.uint16))),
    "dark 16-bit PNG": ("a.png", lambda: Image.fromarray(RAMP.astype(np.uint16))),
    "16-bit TIFF": ("a.tif", lambda: Image.fromarray((RAMP * 257).astype(np.uint16))),
    "32-bit TIFF": ("a.tif", lambda: Image.fromarray((RAMP * 257).astype(np.int32))),
    "32-bit TIFF of bytes": ("a.tif", lambda: Image.fromarray(RAMP.astype(np.int32))),
    "floats up to 1": ("a.tif", lambda: Image.fromarray((RAMP / 255).astype(np.float32))),
    "floats up to 255": ("a.tif", lambda: Image.fromarray(RAMP.astype(np.float32))),
    "floats up to 65535": ("a.tif", lambda: Image.fromarray((RAMP * 257).astype(np.float32))),
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_pixels_are_scaled_to_eight_bits(tmp_path, case):
    name, build = DEEP[case]
    build().save(tmp_path / name)
    expected = [0, 0, 1] if case == "dark 16-bit PNG" else [0, 128, 255]
    for given in (str(tmp_path / name), Image.open(tmp_path / name)):
        assert np.array(open_image(given, "test"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("most", [65535, 4095])
def test_deep_pixels_of_a_pgm_file_are_scaled_by_its_header(tmp_path, most):
    pixels = (np.array([0, 128 / 255, 1]) * most).round().astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 1\n%d\n" % most + pixels.tobytes())
    assert np.array(open_image(str(tmp_path / "a.pgm"), "test"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[0, 1e6], [-1, 1], [0, np.nan], [0, np.inf], [-5.0, 0.5]])
def test_pixels_whose_range_cannot_be_known_are_refused(values):
    picture = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(DataError, match="which of them is white cannot be known"):
        open_image(picture, "test")


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (str(tmp_path / "pipe.png"), "/dev/zero", str(tmp_path)):
        for read in (open_image, image_size):
            with pytest.raises(DataError, match="is not a regular file"):
                read(path, "test")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(DataError, match="more than 10"):
        open_image(str(tmp_path / "a.png"), "test")


def test_a_picture_is_fetched_from_the_web(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, "PNG")
    asked = []
    monkeypatch.setattr(images, "fetch", lambda *given: asked.append(given) or file.getvalue())
    assert open_image(WebPicture("https://a.org/b.png"), "test").size == (8, 4)
    assert asked == [("https://a.org/b.png", WebPolicy(most_bytes=images.MOST_BYTES))]


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((112, 112), {}, (112, 112)),
        ((100, 30), {}, (112, 28)),
        ((112, 112), {"max_pixels": 56 * 56}, (56, 56)),
        ((112, 112), {"min_pixels": 224 * 224}, (224, 224)),
        ((112, 112), {"resized_height": 30, "resized_width": 60}, (28, 56)),
        ((28, 28), {}, (56, 56)),  # of the processor's least pixels
        ((280, 280), {}, (252, 252)),  # of its most
        ((280, 280), {"max_pixels": 10**6}, (280, 280)),
        ((112, 224), {"max_pixels": 28 * 28}, (28, 28)),
    ],
)
def test_sizes_are_those_of_qwen_vl_utils(size, settings, expected):
    sizing = images.Sizing(28, 56 * 56, 256 * 256)
    picture = Image.new("RGB", size[::-1])
    shown = SizedPicture(picture, settings) if settings else picture
    assert image_size(shown, "test", sizing) == expected
    assert open_image(shown, "test", sizing).size == expected[::-1]
    if "resized_height" not in settings and expected != (28, 28):
        least = settings.get("min_pixels", 56 * 56)
        most = max(settings.get("max_pixels", 256 * 256), least)
        assert smart_resize(*size, 28, min_pixels=least, max_pixels=most) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"resized_height": 28},
        {"min_pixels": 9, "max_pixels": 8},
        {"max_pixels": 0},
        {"resized_height": 0, "resized_width": 9},
    ],
)
def test_sizes_that_cannot_be_met_are_refused(settings):
    with pytest.raises(DataError, match="cannot have the size"):
        image_size(SizedPicture(Image.new("RGB", (8, 8)), settings), "test", images.Sizing(28, 56 * 56, 256 * 256))
