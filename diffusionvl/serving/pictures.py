"""Pictures in requests: data URIs, and addresses on hosts that the operator allows; never a file."""

from pathlib import Path

from PIL import Image

from ..data import references
from ..data.images import image_size, open_image
from ..data.references import ImageRoot
from ..data.web import TooLargeError, WebPolicy, fetch
from .errors import ApiError, bad_request
from .picture_cache import Content, PictureCache, digest
from .settings import ServingSettings

SECONDS = 10.0  # that a host may take


def read_picture(url: str, param: str, settings: ServingSettings, cache: PictureCache | None) -> Image.Image:
    """The picture at a data URI or an address; a stand-in for it if the cache knows it.

    Args:
        url: As the client gives it.
        param: Name of its field, for messages.
        settings: Allowed hosts, and limits.
        cache: Pictures that have been prepared; None if this one is prepared together with others.

    Raises:
        ApiError: It is not a picture, too large, or not allowed; the message does not hold the URL.
        UserError: It is not a picture that can be decoded.
    """
    scheme = url[:8].partition(":")[0].lower()
    if scheme not in ("data", "http", "https"):
        raise bad_request("a picture is a data URI (data:image/png;base64,...) or an http address", param)
    source = url if scheme == "data" else _from_web(url, param, settings)
    key = None if cache is None else digest(source)
    if cache is not None and key is not None and (known := cache.find(key)) is not None:
        return known.stand_in
    data = source if isinstance(source, bytes) else references.read_picture(source, param, ImageRoot(Path()))
    height, width = image_size(data, param)
    if height * width > settings.max_pixels:
        raise ApiError(413, f"a picture of {width} x {height} exceeds {settings.max_pixels} pixels; scale it", param)
    picture = open_image(data, param)
    return picture if key is None else Content(key, picture.size).mark(picture)


def _from_web(url: str, param: str, settings: ServingSettings) -> bytes:
    try:
        return fetch(url, WebPolicy(settings.web_hosts, settings.max_body_bytes, SECONDS))
    except TooLargeError as error:
        raise ApiError(413, f"the picture cannot be fetched: {error}", param) from error
    except (OSError, ValueError) as error:
        raise bad_request(f"the picture cannot be fetched: {error}; you can send it as a data URI", param) from error
