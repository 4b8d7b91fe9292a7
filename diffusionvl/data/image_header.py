"""Whether a picture lies on its side, from what its file says beside the pixels."""

import struct
from typing import Any

from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # its values that swap width and height
SPEAKING = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks of a PNG file that may hold it


def is_turned(picture: Image.Image) -> bool:
    """Whether turning an opened, undecoded picture upright swaps its width and height."""
    if picture.format == "TIFF":  # Pillow gives the size of the upright picture
        return False
    if picture.format == "PNG" and _speaks_late(picture.fp):  # type: ignore[attr-defined]
        picture.load()
    # PNG's own `getexif` decodes the whole file to look for what has just been looked for.
    return Image.Image.getexif(picture).get(ORIENTATION) in TURNED


def _speaks_late(file: Any) -> bool:
    """Whether a PNG file has text or EXIF data after its pixels, which Pillow reads only with them."""
    if file is None:
        return False
    place = file.tell()
    try:
        file.seek(8)
        pixels = False
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if pixels and kind in SPEAKING:
                return True
            pixels |= kind == b"IDAT"
            file.seek(size + 4, 1)
        return False
    finally:
        file.seek(place)
