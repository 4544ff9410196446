"""Images by URL, with limits: of time, of size, and of the hosts that may be asked."""

import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

# Seconds that a download may take altogether, and how large it may be.
TIMEOUT = 30.0
MAX_BYTES = 64 << 20
_CHUNK = 1 << 16


def is_url(source: str) -> bool:
    """Whether a string is an http(s) URL."""
    return source[:8].lower().startswith(("http://", "https://"))


def download_image(url: str, timeout: float | None = None, allow_private: bool = False) -> bytes:
    """
    The content of an http(s) URL.

    Args:
        url (`str`): the address; redirects are followed, and each is checked as the first address is.
        timeout (`float`, *optional*): seconds for everything together; 30 by default.
        allow_private (`bool`, *optional*, defaults to `False`): also ask this machine and hosts of private networks,
            which a service must not do for strangers.

    Raises:
        ValueError: for a host that is not public, or a content of more than 64 MiB.
        TimeoutError: when the time is up.
        OSError: when the address cannot be read for another reason.
    """
    shown = url if len(url) <= 200 else url[:200] + "..."
    limits = _Limits(TIMEOUT if timeout is None else timeout, allow_private)
    try:
        request = urllib.request.Request(_ascii(url), headers={"User-Agent": "transformers-glipv2"})
        with _opener(limits).open(request, timeout=limits.seconds) as response:
            content = _read(response, limits)
    except urllib.error.HTTPError as error:
        raise OSError(f"The image at {shown} cannot be read: HTTP {error.code} {error.reason}.") from error
    except _NotPublicError as error:
        raise ValueError(
            f"The image at {shown} is refused: {error}. Pass `allow_private_urls=True` where that is meant."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if limits.are_over() or isinstance(getattr(error, "reason", error), TimeoutError):
            raise TimeoutError(
                f"The image at {shown} took more than {limits.seconds:g} seconds; pass a longer `timeout`, or "
                "download it first."
            ) from error
        raise OSError(f"The image at {shown} cannot be read: {error}.") from error
    finally:
        limits.end()
    if content is None:
        raise ValueError(f"The image at {shown} has more than {MAX_BYTES >> 20} MiB; download and shrink it first.")
    return content


def _ascii(url: str) -> str:
    """A URL whose path and query may have been written with letters of any language."""
    parts = urlsplit(url)
    kept = "%/:=&?~+!$,;'@()*[]"
    return parts._replace(path=quote(parts.path, kept), query=quote(parts.query, kept), fragment="").geturl()


def _read(response: http.client.HTTPResponse, limits: "_Limits") -> bytes | None:
    """The content, or `None` when it is too large."""
    expected = response.length
    if expected is not None and expected > MAX_BYTES:
        return None
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > MAX_BYTES:
            return None
    if limits.are_over() or (expected is not None and len(content) < expected):
        raise http.client.IncompleteRead(b"", None if expected is None else expected - len(content))
    return bytes(content)


class _NotPublicError(Exception):
    """A host of this machine or of a private network."""


class _Limits:
    """The time that one download has over all its redirects, and the hosts that it may ask."""

    def __init__(self, seconds: float, allow_private: bool):
        self.seconds = seconds
        self.allow_private = allow_private
        self.end_time = time.monotonic() + seconds
        self.sockets: list[socket.socket] = []
        # The timeout of a socket begins anew with each byte, so that a slow server could hold a thread for hours.
        self.timer = threading.Timer(seconds, self._disconnect)
        self.timer.daemon = True
        self.timer.start()

    def are_over(self) -> bool:
        return time.monotonic() >= self.end_time

    def end(self) -> None:
        self.timer.cancel()

    def _disconnect(self) -> None:
        for one in self.sockets:
            with suppress(OSError):  # closed already
                # Not the method of SSLSocket, which another thread may be reading from.
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def check_host(self, host: str | None) -> None:
        """Refuses a host before anything is sent to it. What cannot be resolved fails later, or only a proxy can."""
        with suppress(OSError, UnicodeError):
            for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                self._check_address(str(address[0]))

    def check_connection(self, connection: socket.socket, by_proxy: bool) -> None:
        """A name may resolve to another address now than when it was checked."""
        if not by_proxy:
            self._check_address(connection.getpeername()[0])
        self.sockets.append(connection)

    def _check_address(self, address: str) -> None:
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not self.allow_private and (not ip.is_global or ip.is_multicast):
            raise _NotPublicError(f"{address} is not a public address")


def _opener(limits: _Limits) -> urllib.request.OpenerDirector:
    """Opens http and https only, wherever it is redirected to, by the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        _MarkingProxyHandler(),
        _CheckingHandler(limits),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _MarkingProxyHandler(urllib.request.ProxyHandler):
    """Marks the requests that go to a proxy, whose own address may be private."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str):
        host = req.host
        response = super().proxy_open(req, proxy, type)
        req.by_proxy = req.host != host  # type: ignore[attr-defined]
        return response


class _CheckingHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Checks each request, redirected ones too, against the limits."""

    def __init__(self, limits: _Limits):
        super().__init__()
        self.limits = limits

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self.limits.check_host(urlsplit(request.full_url).hostname)
        return self.do_request_(request)

    https_request = http_request

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection(http.client.HTTPConnection, req), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection(http.client.HTTPSConnection, req), req)

    def _connection(self, kind: type, request: urllib.request.Request) -> Any:
        limits, by_proxy = self.limits, getattr(request, "by_proxy", False)

        class Connection(kind):
            def connect(self) -> None:
                super().connect()
                limits.check_connection(self.sock, by_proxy)

        return Connection


__all__ = ["MAX_BYTES", "TIMEOUT", "download_image", "is_url"]
