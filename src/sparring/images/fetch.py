"""The one door to the network: a picture's bytes from an http(s) URL, within limits of size, time and redirects.

What this protects from: other schemes (`file:`, `ftp:`, `data:`) directly or through a redirect, endless bodies,
headers or redirects, servers that drip, answers that say they are no image, and, with `allow_private=False`, hosts that
resolve to loopback, private, link-local, shared or otherwise non-public addresses, at every hop; the connection then
goes to the very address that was checked, so a name that changes its address between check and use gains nothing.

What it does not protect from: with `allow_private=True` (the default, right for a person at a shell) a URL may reach
whatever this machine can reach. With False, a public address is still any server and any port, and a server of yours
that trusts its callers by a public address is not shielded. Proxy settings of the environment are never used.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import importlib.metadata
import ipaddress
import os
import queue
import socket
import ssl
import string
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urljoin, urlsplit

from sparring.core.errors import FetchError, InputError
from sparring.core.sockets import TimedSocket

if TYPE_CHECKING:
    from collections.abc import Iterator


MAX_REDIRECTS = 5
LIMIT = 20 * 2**20
TIMEOUT = 15.0
_CHUNK = 2**16
_REDIRECTS = {301, 302, 303, 307, 308}
_HINTS = {
    401: "it wants a login; download the file yourself and pass its path",
    403: "it refuses this program; download the file yourself and pass its path",
    404: "nothing is there; check the address",
    410: "the picture was removed",
    429: "it has had too many requests; wait, or download the file yourself",
}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def fetch(url: str, *, limit: int = LIMIT, timeout: float = TIMEOUT, allow_private: bool = True) -> bytes:
    """Return the bytes that an http(s) URL serves as an image.

    Args:
        url: an absolute `http://` or `https://` address.
        limit: the most bytes that are accepted, by the announced length and again while they arrive.
        timeout: seconds for everything together: name look-up, connection, redirects, headers and body.
        allow_private: False refuses every host, redirects included, that resolves to an address that is not public.
            Use it wherever the URL comes from somebody else, as in a web server.

    Returns:
        The body, never empty. It is as untrusted as before: `open_picture` decodes it.

    Raises:
        FetchError: another scheme, more than 5 redirects, too large, too slow, cut short, a status other than 200, a
            content type that is no image, an unknown host, a refused connection, a TLS failure, or a refused address.
        InputError: a limit or timeout that is not positive.
    """
    if not limit > 0 or not timeout > 0:
        raise InputError(f"limit and timeout must be positive, got limit={limit!r} bytes and timeout={timeout!r} s")
    clock = _Clock(timeout)
    here = url
    for hop in range(MAX_REDIRECTS + 1):
        target = _Target.parse(here, came_from=url if hop else None)
        with _spoken_clearly(target, clock):
            answer = _get(target, limit, clock, allow_private)
        if isinstance(answer, bytes):
            return answer
        here = urljoin(target.url, answer.location)
    raise FetchError(f"{_shown(url)} was redirected more than {MAX_REDIRECTS} times; pass the final address")


@dataclass(frozen=True)
class _Moved:
    """A redirect's destination, as the server wrote it."""

    location: str


class _Clock:
    """The time that is left for one whole fetch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left, or raise TimeoutError."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


@dataclass(frozen=True)
class _Target:
    """One checked http(s) address, taken apart."""

    url: str
    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, came_from: str | None) -> _Target:
        """Check and split `url`, which the user gave or which `came_from` redirected to."""
        story = f"{_shown(came_from)} redirects to {_shown(url)}" if came_from else f"cannot fetch {_shown(url)}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            if host and not host.isascii():
                host = host.encode("idna").decode("ascii")
        except ValueError as error:
            raise FetchError(f"{story}: it is not a valid address ({error})") from error
        if parts.scheme not in ("http", "https"):
            raise FetchError(f"{story}: only http:// and https:// are fetched, not {parts.scheme or 'nothing'!r}")
        if parts.username is not None or parts.password is not None:
            raise FetchError(f"{story}: a user name in an address is not sent; download the file yourself")
        if not host:
            raise FetchError(f"{story}: it names no host")
        # '%' stays, so what was quoted already is not quoted twice
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]|")
        secure = parts.scheme == "https"
        return cls(url, secure, host, port if port is not None else (443 if secure else 80), path)

    @property
    def host_header(self) -> str:
        """The value of the Host header: the port only where it is not the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


def _get(target: _Target, limit: int, clock: _Clock, allow_private: bool) -> bytes | _Moved:
    with contextlib.closing(_connect(target, clock, allow_private)) as sock:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = cast("Any", TimedSocket(sock, clock))
        connection.request(
            "GET",
            target.path,
            headers={
                "Host": target.host_header,
                "User-Agent": _user_agent(),
                "Accept": "image/*",
                "Connection": "close",
            },
        )
        response = connection.getresponse()
        if response.status in _REDIRECTS:
            location = response.getheader("Location")
            if not location:
                raise FetchError(f"{_shown(target.url)} answers {response.status} but does not say where to go")
            # headers arrive as latin-1: quoting in the same code keeps a raw UTF-8 address what it was
            return _Moved(quote(location, safe=string.punctuation, encoding="latin-1", errors="replace"))
        _check_answer(target, response, limit)
        return _body(target, response, limit)


def _check_answer(target: _Target, response: http.client.HTTPResponse, limit: int) -> None:
    where, status = _shown(target.url), response.status
    if status != 200:
        known = {int(s): s.phrase for s in http.HTTPStatus}
        hint = _HINTS.get(status, "the server is in trouble; try later" if status >= 500 else "check the address")
        raise FetchError(f"{where} answers {status} {known.get(status, '')}".rstrip() + f": {hint}")
    kind = (response.getheader("Content-Type") or "application/octet-stream").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
        page = "a web page" if kind in ("text/html", "application/xhtml+xml") else "no picture"
        raise FetchError(f"{where} is {page} (content type {kind[:80]!r}); pass the address of the picture itself")
    coding = response.getheader("Content-Encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise FetchError(f"{where} sends its body as {coding[:40]!r} though plain bytes were asked for")
    if response.length is not None and response.length > limit:
        raise FetchError(f"{where} is too large: {response.length:,} bytes, and the limit is {limit:,}")


def _body(target: _Target, response: http.client.HTTPResponse, limit: int) -> bytes:
    announced = response.length
    received = bytearray()
    while chunk := response.read1(min(_CHUNK, limit - len(received) + 1)):
        received += chunk
        if len(received) > limit:
            raise FetchError(f"{_shown(target.url)} is too large: it went on past the limit of {limit:,} bytes")
    if announced is not None and len(received) < announced:
        raise FetchError(
            f"{_shown(target.url)} was cut short: {len(received):,} of {announced:,} bytes arrived; try again"
        )
    if not received:
        raise FetchError(f"{_shown(target.url)} is empty (0 bytes)")
    return bytes(received)


def _connect(target: _Target, clock: _Clock, allow_private: bool) -> socket.socket:
    addresses = _resolve(target, clock)
    if not allow_private and not all(_is_public(str(address[0])) for _, address in addresses):
        raise FetchError(f"{_shown(target.url)} leads to an address that is not public, and those are refused here")
    sock = _first_that_answers(addresses, clock)
    if not target.secure:
        return sock
    try:
        sock.settimeout(clock.left())
        return ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise


def _resolve(target: _Target, clock: _Clock) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)))
        except (OSError, ValueError) as error:
            answers.put(error)

    # getaddrinfo knows no time limit, so it is left behind in a thread of its own when it takes too long
    threading.Thread(target=ask, daemon=True, name="sparring-look-up").start()
    try:
        answer = answers.get(timeout=clock.left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise FetchError(f"cannot fetch {_shown(target.url)}: the host {target.host[:100]!r} is not known ({answer})")
    return [(family, address) for family, _, _, _, address in answer]


def _first_that_answers(addresses: list[tuple[socket.AddressFamily, tuple[Any, ...]]], clock: _Clock) -> socket.socket:
    failure: OSError = OSError("it has no address")
    for place, (family, address) in enumerate(addresses):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # a family that this machine does not have
            failure = error
            continue
        try:
            # an address that swallows packets must leave time for the next one
            sock.settimeout(clock.left() / (len(addresses) - place))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _is_public(address: str) -> bool:
    """Tell whether an IP address is public; an IPv6 one that carries an IPv4 one is as public as what it carries."""
    ip = ipaddress.ip_address(address)
    carried = None
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    checked = carried or ip
    return checked.is_global and not checked.is_multicast


@contextlib.contextmanager
def _spoken_clearly(target: _Target, clock: _Clock) -> Iterator[None]:
    """Turn what the network raises into a FetchError that says what happened and what to do."""
    where = f"cannot fetch {_shown(target.url)}"
    try:
        yield
    except FetchError:
        raise
    except TimeoutError as error:
        raise FetchError(f"{where}: not complete within {clock.seconds:g} s; try again or raise timeout") from error
    except ssl.SSLCertVerificationError as error:
        raise FetchError(f"{where}: the server's certificate is not valid ({error.verify_message})") from error
    except ssl.SSLError as error:
        raise FetchError(f"{where}: no secure connection could be made ({error.reason or error})") from error
    except http.client.HTTPException as error:
        raise FetchError(f"{where}: the answer is broken or is no HTTP ({type(error).__name__}: {error})") from error
    except OSError as error:
        proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy") if os.environ.get(name)]
        hint = f"; {proxies[0]} is not used, so download the file yourself" if proxies else ""
        raise FetchError(f"{where}: no connection to {target.host_header} ({error.strerror or error}){hint}") from error
    except ValueError as error:  # http.client refuses control characters in a request this way
        raise FetchError(f"{where}: it is not a valid address ({error})") from error


def _user_agent() -> str:
    try:
        return f"sparring/{importlib.metadata.version('sparring')}"
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "sparring/0"


def _shown(url: str) -> str:
    """Return `url` fit for a message: no password, no control characters, no kilometres."""
    head, at, tail = url.partition("@")
    scheme, slashes, secret = head.partition("://")
    if at and slashes and "/" not in secret:
        url = f"{scheme}://...@{tail}"
    return repr(url if len(url) <= 160 else url[:157] + "...")
