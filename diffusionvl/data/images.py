"""Images: opened when they are needed, upright, as RGB, and refused where they are no ordinary picture."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from .record import DataError, Picture

# Pillow reads some formats by running other programs (EPS), so only these are tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def open_image(image: Picture, name: str) -> Image.Image:
    """Opens an image as RGB.

    Args:
        image: A path, a picture file's bytes, or a picture.
        name: Whose image it is, for messages.

    Raises:
        DataError: It is missing, no image, or so large that Pillow takes it for a decompression bomb.
    """
    with _opened(image, name) as picture:
        upright: Image.Image = ImageOps.exif_transpose(picture)  # as transformers' own loader has it
        if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
            upright = upright.convert("I").point(lambda value: value / 257).convert("L")
        return upright.convert("RGB")


def image_size(image: Picture, name: str) -> tuple[int, int]:
    """Height and width of an upright image, from its file's header alone.

    Raises:
        DataError: As `open_image`, but for pixels that cannot be decoded.
    """
    with _opened(image, name) as picture:
        # Pillow decodes all of a PNG file to look for EXIF data, which cameras do not put there.
        turned = picture.format != "PNG" and picture.getexif().get(ORIENTATION) in TURNED
        width, height = picture.size
        return (width, height) if turned else (height, width)


def name_of(image: Picture) -> str:
    """An image as a message names it."""
    return repr(image) if isinstance(image, str) else "stored in the record"


@contextmanager
def _opened(image: Picture, name: str) -> Iterator[Image.Image]:
    """Opens a picture file and tells what goes wrong inside in one line."""
    what = f"image {name_of(image)}"
    # Another library may have told Pillow to fill up half a picture with grey (lmms-eval does).
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, Image.Image):
                yield image
            else:
                with Image.open(image if isinstance(image, str) else io.BytesIO(image), formats=FORMATS) as picture:
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


ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # its values that swap width and height
