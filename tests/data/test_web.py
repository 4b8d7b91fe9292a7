"""What is fetched from the web, and what is not."""

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffusionvl.data.images import open_image
from diffusionvl.data.record import DataError, WebPicture
from diffusionvl.data.web import NotAllowedError, TooLargeError, WebPolicy, fetch

HERE = WebPolicy(hosts=("127.0.0.1",), most_bytes=1000, seconds=0.5)


class Pages(BaseHTTPRequestHandler):
    """`/ok` is a page, `/away` redirects to it, `/slow` drips, `/large` is large."""

    def do_GET(self):
        self.send_response(302 if self.path == "/away" else 404 if self.path == "/none" else 200)
        self.send_header("Location", "/ok")
        self.end_headers()
        if self.path == "/slow":
            with suppress(OSError):  # nobody waits that long
                for _ in range(20):
                    self.wfile.write(b".")
                    time.sleep(0.1)
        with suppress(OSError):
            self.wfile.write(b"x" * (5000 if self.path == "/large" else 5))

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def pages():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_host_on_the_list_is_read_wherever_it_is(pages):
    assert fetch(f"{pages}/ok", HERE) == b"xxxxx"


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/away", NotAllowedError, "'127.0.0.1:[0-9]+' redirects"),
        ("/large", TooLargeError, "more than 1000 bytes"),
        ("/slow", TimeoutError, "more than 0.5 seconds"),
        ("/none", OSError, "404"),
    ],
)
def test_what_a_policy_does_not_let_in(pages, path, error, message):
    with pytest.raises(error, match=message):
        fetch(pages + path, HERE)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
        "http://",
        "http://[::1",
        "127.0.0.1/a",
        "http://a.org/b",
        "http://127.0.0.1.a.org/",
    ],
)
def test_only_the_hosts_on_the_list(url):
    with pytest.raises(ValueError, match=r"not an http|not allowed|Invalid IPv6"):
        fetch(url, HERE)


def test_without_a_list_no_host_is_read_that_is_inside_a_private_network(pages, monkeypatch):
    for url in (pages, pages.replace("127.0.0.1", "localhost"), pages.replace("127.0.0.1", "2130706433")):
        with pytest.raises(NotAllowedError, match="inside a private network"):
            fetch(f"{url}/ok", WebPolicy())
    with pytest.raises(DataError, match=r"test: image 'http.* cannot be read: .* inside a private network"):
        open_image(WebPicture(f"{pages}/ok"), "test")
    monkeypatch.setenv("http_proxy", pages)  # which may well be inside
    assert fetch("http://a.org/ok", WebPolicy()) == b"xxxxx"


def test_a_host_that_does_not_speak_http_is_an_error_of_the_network(pages, monkeypatch):
    monkeypatch.setattr(Pages, "do_GET", lambda self: self.wfile.write(b"hello\r\n"))
    with pytest.raises(OSError, match="HTTP"):
        fetch(f"{pages}/ok", HERE)
