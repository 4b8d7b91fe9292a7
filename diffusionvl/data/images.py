"""Images: opened when they are needed, upright, on white, as RGB of 8 bits, and refused where that cannot be known.

This is the one way of a picture into a model: for training, prompts and evaluation alike.
"""

import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from .image_header import is_turned
from .record import DataError, Picture, SizedPicture, WebPicture
from .web import WebPolicy, fetch

# Pillow reads some formats by running other programs (EPS), so only these are tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ADDRESSES = ("http://", "https://", "data:")
MOST_BYTES = 2**28  # of a picture's file


class Sizing(NamedTuple):
    """How large a processor makes pictures.

    Attributes:
        multiple: Pixels that sides are multiples of.
        least: Least pixels of a picture.
        most: Most pixels of a picture.
    """

    multiple: int
    least: int
    most: int


def open_image(image: Picture, name: str, sizing: Sizing | None = None) -> Image.Image:
    """Opens an image as RGB.

    It is turned upright by its EXIF data; transparent parts are laid on white; of pixels with more than 8 bits, 0 is
    black and the largest number of their range (65535, 255 or 1) is white.

    Args:
        image: A path, a picture file's bytes, or a picture.
        name: Whose image it is, for messages.
        sizing: Resize the image as the processor would, but for what a `SizedPicture` itself says.

    Raises:
        DataError: It is missing, not an image, so large that Pillow takes it for a decompression bomb, or of pixels
            whose range cannot be known.
    """
    source = image.source if isinstance(image, SizedPicture) else image
    with _opened(source, name) as picture:
        upright = ImageOps.exif_transpose(picture)
        upright.format = picture.format  # the copy has none
        opened = on_white(upright)
    if sizing is None:
        return opened
    height, width = resized((opened.height, opened.width), image, name, sizing)
    return opened.resize((width, height), Image.Resampling.BICUBIC)


def image_size(image: Picture, name: str, sizing: Sizing | None = None) -> tuple[int, int]:
    """Height and width of what `open_image` gives, from the file's header alone.

    Raises:
        DataError: As `open_image`, but for pixels that cannot be decoded.
    """
    with _opened(image.source if isinstance(image, SizedPicture) else image, name) as picture:
        width, height = picture.size
        size = (width, height) if is_turned(picture) else (height, width)
    return size if sizing is None else resized(size, image, name, sizing)


def on_white(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB of 8 bits, its transparent parts on white.

    Raises:
        ValueError: Its pixels have a range that cannot be known.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_8_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Pixels of 16 or 32 bits or floats as 8 bits."""
    pixels = np.asarray(picture)
    low, high = float(pixels.min()), float(pixels.max())
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):  # scaled by Pillow
        white = 65535.0
    elif not 0 <= low <= high <= 65535:  # also what is not a number
        raise ValueError(f"its pixels go from {low:g} to {high:g}, so which of them is white cannot be known")
    else:
        white = next(white for white in (1.0, 255.0, 65535.0) if high <= white and (white > 1 or picture.mode == "F"))
    gray = Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        gray.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return gray


def resized(size: tuple[int, int], image: Picture, name: str, sizing: Sizing) -> tuple[int, int]:
    """Height and width that a processor or a part's settings ask for, as qwen-vl-utils understands them.

    Sides become multiples of a number, and both shrink or grow by one factor where there are too many or few pixels.

    Raises:
        DataError: They cannot be met.
    """
    multiple, least, most = sizing
    asked = image.settings if isinstance(image, SizedPicture) else {}
    height, width = asked.get("resized_height", size[0]), asked.get("resized_width", size[1])
    if "resized_height" in asked:
        least, most = 1, 2**40
    if "min_pixels" in asked:
        least, most = int(asked["min_pixels"]), max(most, int(asked["min_pixels"]))
    if "max_pixels" in asked:
        least, most = least if "min_pixels" in asked else min(least, int(asked["max_pixels"])), int(asked["max_pixels"])
    if min(height, width, most) < 1 or least > most or ("resized_height" in asked) != ("resized_width" in asked):
        raise DataError(
            f"{name}: image {name_of(image)} cannot have the size {asked}; give min_pixels up to max_pixels, or both "
            "resized_height and resized_width",
            "bad image",
        )
    sides = [max(round(side / multiple), 1) * multiple for side in (height, width)]
    pixels = math.prod(sides)
    if not least <= pixels <= most:
        towards, wanted = (math.floor, most) if pixels > most else (math.ceil, least)
        factor = math.sqrt(wanted / (height * width))
        sides = [max(towards(side * factor / multiple), 1) * multiple for side in (height, width)]
    return sides[0], sides[1]


def name_of(image: Picture) -> str:
    """An image as a message names it."""
    if isinstance(image, SizedPicture):
        return name_of(image.source)
    return repr(image) if isinstance(image, str | WebPicture) else "stored in the record"


@contextmanager
def _opened(image: str | bytes | Image.Image | WebPicture, name: str) -> Iterator[Image.Image]:
    """Opens a picture file, and reports what goes wrong inside in one line."""
    what = f"image {name_of(image)}"
    # Another library may have told Pillow to fill up half a picture with grey (lmms-eval does).
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, Image.Image):
                yield image
            else:
                with Image.open(_file(image), formats=FORMATS) as picture:
                    yield picture
    except FileNotFoundError as error:
        folder = Path(str(image)).parent
        raise DataError(f"{name}: {what} does not exist; check 'image_root' ({folder})", "missing image") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNG files
        raise DataError(
            f"{name}: {what} cannot be read: {error}; replace it or drop the record", "bad image"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: {what} is too large: {error}; scale it down", "bad image") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _file(image: str | bytes | WebPicture) -> str | io.BytesIO:
    """What Pillow opens: a regular file of a bounded size, or bytes."""
    if isinstance(image, str):
        found = os.stat(image)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if found.st_size > MOST_BYTES:
            raise ValueError(f"it has {found.st_size} bytes, more than {MOST_BYTES}")
        return image
    if isinstance(image, WebPicture):
        return io.BytesIO(fetch(image.url, WebPolicy(most_bytes=MOST_BYTES)))
    return io.BytesIO(image)


def open_alike(image_processor: Any) -> None:
    """Makes an image processor open files and pictures by `open_image`, as training does; addresses stay its own.

    transformers clips pictures of more than 8 bits, and lays transparent ones on black.
    """
    stock = type(image_processor)

    def fetch_images(self: Any, images: Any) -> Any:
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, Image.Image) or (isinstance(images, str) and not images.startswith(ADDRESSES)):
            return open_image(images, "an image")
        return stock.fetch_images(self, images)

    image_processor.__class__ = type(stock.__name__, (stock,), {"fetch_images": fetch_images})
