"""Fetches pictures from the web: the one way, and what it lets in."""

import http.client
import time
import urllib.request
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

PIECE = 2**16


class NotAllowedError(ValueError):
    """An address, or what lies there, that a policy does not let in."""


class TooLargeError(NotAllowedError):
    """What lies at an address has too many bytes."""


@dataclass(frozen=True)
class WebPolicy:
    """What may be fetched.

    Attributes:
        hosts: Hosts that are allowed, wherever they are; None allows every host, but no address inside a private
            network (unless a proxy stands in between, which decides for itself).
        most_bytes: Largest number of bytes.
        seconds: That all of it may take.
    """

    hosts: tuple[str, ...] | None = None
    most_bytes: int = 2**28
    seconds: float = 20.0


def fetch(url: str, policy: WebPolicy) -> bytes:
    """What lies at an http or https address. Redirects are not followed: they could lead to a host that is not allowed.

    Messages hold the host at most, not the address.

    Raises:
        ValueError: It is not an address, or (`NotAllowedError`) the policy does not let it in.
        OSError: The network or the host fails.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise NotAllowedError("it is not an http or https address")
    if policy.hosts is not None and parts.hostname not in policy.hosts:
        raise NotAllowedError(f"the host {parts.hostname!r} is not allowed")
    public = policy.hosts is None and not urllib.request.getproxies()
    opener = urllib.request.build_opener(_NoRedirect, *([_PublicHttp, _PublicHttps] if public else []))
    end, content = time.monotonic() + policy.seconds, bytearray()
    try:
        with opener.open(url, timeout=policy.seconds) as answer:
            while piece := answer.read1(PIECE):
                content += piece
                if len(content) > policy.most_bytes:
                    raise TooLargeError(f"it has more than {policy.most_bytes} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"it takes more than {policy.seconds:g} seconds")
    except http.client.HTTPException as error:
        raise OSError(f"the host does not speak HTTP ({error!r})") from error
    return bytes(content)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, answer: Any, code: int, *args: Any) -> None:
        """Refuses."""
        raise NotAllowedError(f"the host {request.host!r} redirects ({code}); give the address that it redirects to")


class _Public(http.client.HTTPConnection):
    """A connection that is given up if it leads into a private network: a name may be at any address."""

    def connect(self) -> None:
        """Connects, and looks where to before anything is sent."""
        super().connect()
        peer = ip_address(self.sock.getpeername()[0].partition("%")[0])
        if not (getattr(peer, "ipv4_mapped", None) or peer).is_global:
            self.close()
            raise NotAllowedError(f"the host {self.host!r} is at {peer}, inside a private network")


class _PublicTls(_Public, http.client.HTTPSConnection):
    pass


class _PublicHttp(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens an http address."""
        return self.do_open(_Public, request)


class _PublicHttps(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens an https address."""
        return self.do_open(_PublicTls, request)
