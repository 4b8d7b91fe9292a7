"""Pictures in requests: data URIs, and addresses on hosts that the operator allows; never a file."""

import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ..data import references
from ..data.images import image_size, open_image
from ..data.references import ImageRoot
from .errors import ApiError, bad_request
from .settings import ServingSettings

SECONDS = 10.0  # that a host may take


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed host must not send the server to one that is not."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follows nothing, so that the answer is an error."""


def read_picture(url: str, param: str, settings: ServingSettings) -> Image.Image:
    """The picture at a data URI or an address.

    Args:
        url: As the client gives it.
        param: Name of its field, for messages.
        settings: Allowed hosts, and limits.

    Raises:
        ApiError: It is not a picture, too large, or not allowed; the message does not hold the URL.
        UserError: It is not a picture that can be decoded.
    """
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        data = references.read_picture(url, param, ImageRoot(Path()))
    elif scheme in ("http", "https"):
        data = _from_web(url, param, settings)
    else:
        raise bad_request("a picture is a data URI (data:image/png;base64,...) or an http address", param)
    height, width = image_size(data, param)
    if height * width > settings.max_pixels:
        raise ApiError(413, f"a picture of {width} x {height} exceeds {settings.max_pixels} pixels; scale it", param)
    return open_image(data, param)


def _from_web(url: str, param: str, settings: ServingSettings) -> bytes:
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise bad_request(f"is not an address: {error}", param) from error
    if host not in settings.web_hosts:
        raise bad_request(
            f"pictures from the host {host!r} are not allowed here; send the picture itself as a data URI", param
        )
    try:
        with urllib.request.build_opener(_NoRedirect).open(url, timeout=SECONDS) as answer:
            data = answer.read(settings.max_body_bytes + 1)
    except (OSError, ValueError) as error:  # of the network, of HTTP, or of the address
        raise bad_request(f"cannot be fetched: {error}", param) from error
    if len(data) > settings.max_body_bytes:
        raise ApiError(413, f"the picture exceeds {settings.max_body_bytes} bytes", param)
    return data
