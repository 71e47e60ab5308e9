"""Requests to one service: http(s) alone, no redirects, one clock over each, retries with jitter, a limit on the rate.

What this protects from: secrets in messages, redirects that would carry them elsewhere, endless or dripping answers, a
service that is overloaded. Proxy settings of the environment are never used. Looking up a host's name has no time limit.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import queue
import re
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from sparring._version import __version__
from sparring.core.errors import InputError, VictimError
from sparring.core.sockets import TimedSocket
from sparring.victims.http_mapping import Service

if TYPE_CHECKING:
    pass

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET = re.compile(r"auth|cookie|key|pass|secret|token", re.IGNORECASE)
_OWN = {"accept-encoding", "connection", "content-length", "host", "transfer-encoding"}
_CHUNK = 2**16
_EXCERPT = 200
_AGAIN = 429
_HINTS = {
    401: "check the key in the mapping's headers",
    403: "check the key in the mapping's headers, and what it may use",
    404: "check the mapping's url",
    405: "check the mapping's method",
    413: "fewer inputs a request (batch), or a smaller encoding",
    415: "the service wants another content type: set it in the headers",
    422: "check the mapping's body: the service could not use it",
}


class _UnreachedError(Exception):
    """No connection came about, so that nothing was sent."""


class Wire:
    """A service that can be sent requests, from several threads at once.

    Args:
        service: see there. Variables of the environment are read here, once.
        name: what messages call the victim.

    Raises:
        InputError: an address or header that cannot be, or a variable that is not set.
    """

    def __init__(self, service: Service, name: str) -> None:
        self.service, self.name = service, name
        self._secrets: list[str] = []
        self.headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"sparring/{__version__}",
        }
        for key, value in service.headers.items():
            self._add_header(key, value)
        self._target(service.url)
        self._context = ssl.create_default_context() if self.secure else None
        self._idle: queue.LifoQueue[_Connection] = queue.LifoQueue()
        self.close = weakref.finalize(self, _drain, self._idle)
        self._pace, self._next = threading.Lock(), 0.0

    @property
    def address(self) -> str:
        """The address as messages and the log show it: scheme, host, port, and the path with the names of variables."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self._shown}"

    def exchange(
        self, body: bytes, key: str, open_: Callable[[], int], refused: Callable[[int], None]
    ) -> tuple[int, bytes]:
        """Send a request until it is answered: the number of the attempt that was, and the answer.

        Args:
            body: JSON.
            key: what the jitter of the waits depends on.
            open_: called before each attempt, gives it a number; what it raises ends the exchange.
            refused: told of each attempt that the service did not take.

        Raises:
            VictimError: a status that is no success, an answer that is too large, or no answer after every retry.
        """
        failure = ""
        for attempt in range(self.service.retries + 1):
            self._wait_for_turn()
            ticket = open_()
            try:
                status, headers, data = self._once(body)
            except _UnreachedError as cause:
                refused(ticket)
                failure, wait = f"no connection ({cause})", None
            except TimeoutError:
                failure, wait = f"not answered within {self.service.timeout:g} s", None
            except ssl.SSLCertVerificationError as cause:
                refused(ticket)
                raise VictimError(f"{self._who}: its certificate is not valid ({cause.verify_message})") from None
            except (OSError, http.client.HTTPException) as cause:
                failure, wait = f"broken off ({type(cause).__name__}: {cause})", None
            else:
                if 200 <= status < 300:
                    return ticket, data
                refused(ticket)
                if status != _AGAIN and status < 500:
                    raise VictimError(self._refusal(status, headers, data))
                failure, wait = f"status {status}{self._excerpt(data)}", _retry_after(headers)
            if attempt < self.service.retries:
                self._rest(attempt, key, wait, failure)
        times = f"after {self.service.retries + 1} attempts" if self.service.retries else "and is not asked again"
        raise VictimError(
            f"{self._who} gives no answer {times}: {self.hidden(failure)}. What was answered before is kept"
        )

    def hidden(self, text: str) -> str:
        """A text without the secrets that it may repeat."""
        for secret in self._secrets:
            for spelling in {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1]}:
                text = text.replace(spelling, "***")
        return text

    @property
    def _who(self) -> str:
        return f"{self.name!r} at {self.hidden(self.address)}"

    # -- addresses, headers and secrets --------------------------------------------------------------------------------

    def _expand(self, text: str, where: str, *, secret: bool = True) -> str:
        def value(found: re.Match[str]) -> str:
            told = os.environ.get(found[1])
            if not told:
                raise InputError(
                    f"the mapping's {where} needs the environment variable {found[1]}, which is not set: "
                    f"export {found[1]}=..."
                )
            if secret:
                self._secrets.append(told)
            return told

        return _VARIABLE.sub(value, text)

    def _add_header(self, key: str, template: str) -> None:
        if not _TOKEN.fullmatch(key) or key.lower() in _OWN:
            raise InputError(f"[service.headers] has {key!r:.60}, which is no name of a header that can be set")
        value = self._expand(template, f"header {key!r}")
        if not value.isprintable() or not value.isascii():
            raise InputError(f"the header {key!r} has characters that cannot be sent; its value is not shown here")
        if template == value and _SECRET.search(key):
            self._secrets += [value, value.rpartition(" ")[2]]
        self.headers = {k: v for k, v in self.headers.items() if k.lower() != key.lower()} | {key: value}

    def _target(self, template: str) -> None:
        scheme, mark, rest = template.partition("://")
        if not mark or scheme.lower() not in ("http", "https"):
            raise InputError(
                f"the mapping's url begins with {scheme[:20]!r}; https://host/path is needed (http:// works), where the "
                "host and the rest may hold ${VARIABLES}"
            )
        self._shown = urlsplit(template).path  # with the variables' names: what is behind the host may be a key
        host, slash, tail = rest.partition("/")
        place = self._expand(host, "url", secret=False)
        try:
            parts = urlsplit(f"{scheme.lower()}://{place}{slash}{self._expand(tail, 'url')}")
            name, port = parts.hostname or "", parts.port
            name = name if name.isascii() else name.encode("idna").decode("ascii")
        except ValueError:
            raise InputError("the mapping's url is no valid address: https://host/path is needed") from None
        if not name or parts.username is not None or parts.password is not None:
            raise InputError(
                "the mapping's url names no host, or a login beside it; a login goes into a header: "
                'Authorization = "Basic ${LOGIN}"'
            )
        self.secure, self.host = parts.scheme == "https", name
        self.port = port if port is not None else (443 if self.secure else 80)
        self.path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            self.path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        for pair in parts.query.split("&"):
            key, _, value = pair.partition("=")
            if value and _SECRET.search(key):
                self._secrets.append(value)

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def _once(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self._connected()
        try:
            connection.request(self.service.method, self.path, body, self.headers)
            response = connection.getresponse()
            data, whole = self._read(response)
            if whole and not response.will_close:
                response.close()  # read to its announced end it still counts as open, which bars the next request
                self._idle.put(connection)
            else:
                connection.shut()
            return response.status, response.headers, data
        except BaseException:
            connection.shut()
            raise

    def _connected(self) -> _Connection:
        clock = time.monotonic() + self.service.timeout
        with contextlib.suppress(queue.Empty):
            while True:
                kept = self._idle.get_nowait()
                if kept.alive():
                    kept.until = clock
                    return kept
                kept.shut()
        connection = _Connection(self.host, self.port, self._context, clock)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, UnicodeError) as cause:
            raise _UnreachedError(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__) from None
        return connection

    def _read(self, response: http.client.HTTPResponse) -> tuple[bytes, bool]:
        """The body, and whether it is the whole of it; of an error, its beginning is enough."""
        limit, good = self.service.largest_answer, 200 <= response.status < 300
        coding = response.getheader("Content-Encoding", "identity").strip().lower()
        if good and coding not in ("identity", ""):
            raise VictimError(f"{self._who} answers in {coding[:40]!r} though plain bytes were asked for")
        announced, received = response.length, bytearray()
        while len(received) <= limit and (chunk := response.read1(min(_CHUNK, limit - len(received) + 1))):
            received += chunk
        if len(received) > limit:
            if good:
                raise VictimError(
                    f"{self._who} answers with more than {limit:,} bytes; raise largest_answer if that is how it should be"
                )
            return bytes(received), False
        if announced is not None and len(received) < announced:
            raise http.client.IncompleteRead(b"", announced - len(received))
        return bytes(received), True

    def _refusal(self, status: int, headers: http.client.HTTPMessage, data: bytes) -> str:
        if 300 <= status < 400:
            return (
                f"{self._who} answers {status} and sends elsewhere ({self.hidden(str(headers.get('Location')))[:100]!r}). "
                "Redirects are not followed, because keys would go along: put the final address into the mapping"
            )
        return f"{self._who} answers {status}{self._excerpt(data)}; {_HINTS.get(status, 'check the mapping')}"

    def _excerpt(self, data: bytes) -> str:
        text = " ".join(self.hidden(data[:_CHUNK].decode("utf-8", "replace")).split())
        text = "".join(c if c.isprintable() else "?" for c in text[:_EXCERPT])
        return f" and says {text!r}" if text else ""

    # -- patience ------------------------------------------------------------------------------------------------------

    def _wait_for_turn(self) -> None:
        if self.service.rate is None:
            return
        with self._pace:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 1 / self.service.rate
        time.sleep(turn - now)

    def _rest(self, attempt: int, key: str, asked: float | None, failure: str) -> None:
        """Wait before the next attempt: as long as the service asks for, else twice as long as the last time."""
        longest = self.service.longest_wait
        if asked is not None and asked > longest:
            raise VictimError(
                f"{self._who} asks to be left alone for {asked:.0f} s ({self.hidden(failure)}), and longest_wait is "
                f"{longest:g}. Run the same again later: what was answered is kept"
            )
        # an equal spread over the upper half, from the request itself: a repeated run waits as long
        spread = 0.5 + int(key[2 * attempt % 48 :][:8], 16) / 2**33
        backoff = min(longest, self.service.backoff * 2**attempt) * spread
        time.sleep(max(backoff, asked or 0.0))


class _Connection(http.client.HTTPConnection):
    """A connection that is kept between requests, and that no wait outlasts its clock."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, until: float) -> None:
        super().__init__(host, port)
        self.until, self._context, self._raw = until, context, cast("Any", None)

    def connect(self) -> None:
        raw = socket.create_connection((self.host, self.port), self.left())
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                raw.settimeout(self.left())
                raw = self._context.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        self._raw, self.sock = raw, cast("Any", TimedSocket(raw, self))

    def left(self) -> float:
        """Seconds left for this request, or TimeoutError."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def alive(self) -> bool:
        """Whether the service kept its end open: an idle connection with something to read has ended or gone wrong."""
        if self._raw is None or self.sock is None:
            return False
        try:
            return not select.select([self._raw], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def shut(self) -> None:
        """Close the socket itself."""
        self.close()
        if self._raw is not None:
            self._raw.close()


def _drain(idle: queue.LifoQueue[_Connection]) -> None:
    """Close the connections that are kept for the next request."""
    with contextlib.suppress(queue.Empty):
        while True:
            idle.get_nowait().shut()


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    """Seconds that a `Retry-After` asks for, given as such or as a date; None without one."""
    told = (headers.get("Retry-After") or "").strip()
    if told.isascii() and told.isdigit():
        return float(told[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
