"""Images by URL: limits of time and size, and no host that strangers must not reach."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest

from tests.tiny_detector import natural_image, tiny_processor
from transformers_glipv2.images import image_download
from transformers_glipv2.images.image_download import download_image
from transformers_glipv2.images.image_io import open_image


def png() -> bytes:
    content = BytesIO()
    natural_image(20, 30).save(content, "png")
    return content.getvalue()


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server of this machine; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the other side hung up
                answer(self)

        def log_message(self, *args) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def send(request: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(content)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_an_image_by_url():
    with server(lambda request: send(request, png())) as address:
        image = open_image(f"{address}/caf\u00e9 street.png?a=b c", allow_private_urls=True)
        assert np.array_equal(np.array(image), np.array(natural_image(20, 30)))


PRIVATE = "127.0.0.1 localhost [::1] 0.0.0.0 10.1.2.3 192.168.0.1 169.254.169.254 100.64.0.1 127.1 2130706433"
PRIVATE += " 224.0.0.1 [::ffff:127.0.0.1] [fe80::1] [fd00::1]"


@pytest.mark.parametrize("host", PRIVATE.split())
def test_hosts_that_are_not_public(host):
    with pytest.raises(ValueError, match=r"http://.*/x\.png is refused: .* is not a public address.*`allow_private_"):
        open_image(f"http://{host}:9/x.png")


def test_redirects_are_checked(monkeypatch):
    """Only the first address counts as public here."""
    check = image_download._Limits._check_address
    asked = []

    def first_is_public(limits, address):
        asked.append(address)
        if len(asked) > 2:  # of the first request: the resolved name, and the connection
            check(limits, address)

    monkeypatch.setattr(image_download._Limits, "_check_address", first_is_public)
    seen = []

    def answer(request):
        seen.append(request.path)
        send(request, b"", 302, Location="/secret.png") if request.path == "/" else send(request, png())

    with (
        server(answer) as address,
        pytest.raises(ValueError, match=r"is refused: 127\.0\.0\.1 is not a public address"),
    ):
        download_image(f"{address}/")
    assert seen == ["/"]


def test_a_name_that_resolves_to_another_address_later(monkeypatch):
    """The address of the connection counts; nothing is sent to a host that is not public."""
    monkeypatch.setattr(image_download._Limits, "check_host", lambda limits, host: None)
    seen = []
    with (
        server(lambda request: seen.append(request.path)) as address,
        pytest.raises(ValueError, match="is not a public address"),
    ):
        download_image(f"{address}/x.png")
    assert not seen


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "gopher://127.0.0.1"])
def test_redirects_to_other_kinds_of_addresses(target):
    with server(lambda request: send(request, b"", 302, Location=target)) as address, pytest.raises(OSError) as error:
        download_image(f"{address}/x.png", allow_private=True)
    assert f"{address}/x.png cannot be read" in str(error.value)


def test_redirects_without_end():
    def answer(request):
        send(request, b"", 302, Location=f"{request.path}a")

    with server(answer) as address, pytest.raises(OSError, match=r"/x.png cannot be read: HTTP 302.*infinite loop"):
        download_image(f"{address}/x.png", allow_private=True)


def test_errors_of_the_server():
    with (
        server(lambda request: send(request, b"none", 404)) as address,
        pytest.raises(OSError, match=r"http://127.0.0.1:\d+/x.png cannot be read: HTTP 404 Not Found"),
    ):
        open_image(f"{address}/x.png", allow_private_urls=True)
    with pytest.raises(OSError, match=r"http://127.0.0.1:\d+/x.png cannot be read: .*refused"):
        open_image(f"{address}/x.png", allow_private_urls=True)
    with (
        server(lambda request: send(request, b"<html>", 200)) as address,
        pytest.raises(ValueError, match=r"The image at http://127.0.0.1:\d+/page is not an image"),
    ):
        open_image(f"{address}/page", allow_private_urls=True)


@pytest.mark.parametrize("where", ["connection", "headers", "content"])
def test_slow_servers(where):
    """A byte now and then: no single wait is long."""

    def answer(request):
        if where == "content":
            send(request, b"")
        if where == "headers":
            request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            time.sleep(0.1)
            if where != "connection":
                request.wfile.write(b"x: y\r\n" if where == "headers" else b"x")

    with server(answer) as address:
        start = time.perf_counter()
        with pytest.raises(TimeoutError, match=r"/x.png took more than 0.5 seconds; pass a longer `timeout`"):
            open_image(f"{address}/x.png", timeout=0.5, allow_private_urls=True)
        assert time.perf_counter() - start < 3


def test_large_contents(monkeypatch):
    monkeypatch.setattr(image_download, "MAX_BYTES", 1 << 20)
    sent = []

    def endless(request):
        send(request, b"")
        for _ in range(1000):
            request.wfile.write(bytes(1 << 16))
            sent.append(1)

    for answer in (endless, lambda request: send(request, b"", Content_Length=str(1 << 30))):
        with server(answer) as address, pytest.raises(ValueError, match=r"/x\.png has more than 1 MiB"):
            download_image(f"{address}/x.png", allow_private=True)
    assert len(sent) < 500


def test_contents_that_end_early():
    with (
        server(lambda request: send(request, png()[:50], Content_Length="5000")) as address,
        pytest.raises(OSError, match=r"/x.png cannot be read: IncompleteRead"),
    ):
        download_image(f"{address}/x.png", allow_private=True)


def test_a_proxy_of_a_private_network(monkeypatch):
    """Its own address may be private; what it is asked for may not."""
    asked = []

    def answer(request):
        asked.append(request.path)
        send(request, png())

    with server(answer) as address:
        monkeypatch.setenv("http_proxy", address)
        assert open_image("http://name-that-only-the-proxy-knows.example/x.png").size == (30, 20)
        with pytest.raises(ValueError, match="is not a public address"):
            open_image("http://10.0.0.1/x.png")
    assert asked == ["http://name-that-only-the-proxy-knows.example/x.png"]


def test_strange_urls():
    for url in ("http://", "http://[::1", "https://a b/x.png", "http://:80/", "http://x" + "y" * 300 + "/"):
        with pytest.raises((OSError, ValueError), match=r"image at http"):
            open_image(url, timeout=2)


def test_a_processor_that_allows_no_urls():
    processor = tiny_processor()
    with server(lambda request: send(request, png())) as address:
        url = f"{address}/x.png"
        with pytest.raises(ValueError, match="is not a public address"):
            processor(images=url, text="dog")
        assert processor(images=url, text="dog", allow_private_urls=True)["pixel_values"].shape[0] == 1
        processor.image_processor.allow_private_urls = True
        assert processor(images=[url], text="dog")["pixel_values"].shape[0] == 1
        processor.image_processor.allow_urls = False
        for call in (
            lambda: processor(images=url, text="dog"),
            lambda: processor.image_processor(url),
            lambda: processor.image_processor.open_image(url),
        ):
            with pytest.raises(ValueError, match=r"/x.png is refused: URLs are not allowed here"):
                call()
    processor.image_processor.open_image(natural_image())


def test_the_sockets_are_closed():
    with server(lambda request: send(request, png())) as address:
        before = threading.active_count()
        for _ in range(20):
            download_image(f"{address}/x.png", allow_private=True)
        time.sleep(0.1)
        assert threading.active_count() <= before + 1, "the timers end with the downloads"


def test_ipv6_scope():
    limits = image_download._Limits(1, False)
    limits.end()
    with pytest.raises(image_download._NotPublicError):
        limits._check_address("fe80::1%eth0")
    limits._check_address("93.184.216.34")
