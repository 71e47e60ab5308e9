"""Fetching a picture: a real server on this machine that behaves well, badly and with malice."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sparring.core.errors import FetchError, InputError, LoadError
from sparring.images.fetch import MAX_REDIRECTS, _is_public, _Target, fetch

BODY = bytes(range(256)) * 8
Route = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A web site on 127.0.0.1 whose pages are functions, and which remembers its requests."""

    def __init__(self) -> None:
        self.pages: dict[str, Route] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.requests.append(self.path)
                site.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.close_connection = True
                with contextlib.suppress(ConnectionError):
                    site.pages[self.path.partition("?")[0]](self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, path: str = "/picture.png") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def drip(self, write: Callable[[bytes], object], data: bytes, pause: float = 0.03) -> None:
        for byte in data:
            if self.closing.wait(pause):
                return
            write(bytes([byte]))

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def page(
    status: int = 200, body: bytes = BODY, length: int | None = -1, kind: str | None = "image/png", **headers: str
) -> Route:
    """A page with `body`; `length` -1 announces its true length, None announces nothing."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if kind is not None:
            handler.send_header("Content-Type", kind)
        if length is not None:
            handler.send_header("Content-Length", str(len(body) if length == -1 else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def moved(location: str, status: int = 302) -> Route:
    return page(status, b"", kind=None, Location=location)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.pages["/picture.png"] = page()
    yield site
    site.close()


@pytest.fixture
def talker() -> Iterator[Callable[[bytes], int]]:
    """A server that sends the given bytes to whoever comes, and then holds the line; returns its port."""
    done = threading.Event()
    threads, sockets = [], []

    def start(data: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(data)
                    if not data:
                        done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return int(listener.getsockname()[1])

    yield start
    done.set()
    for listener in sockets:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *answers: list[tuple[str, int]]) -> list[str]:
    """Let every look-up give the next of `answers` (the last one for ever); return the list of names asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        answer = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, p or port)) for ip, p in answer]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_the_bytes_arrive_and_the_request_is_plain(site: Site) -> None:
    assert fetch(site.url()) == BODY
    (headers,) = site.headers
    assert headers["user-agent"].startswith("sparring/")
    assert headers["host"] == f"127.0.0.1:{site.port}"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("/a b.png", "/a%20b.png"),
        ("/a%20b.png", "/a%20b.png"),
        ("/größe.png?q=ä b&x=1", "/gr%C3%B6%C3%9Fe.png?q=%C3%A4%20b&x=1"),
        ("/p.png#part", "/p.png"),
        ("", "/"),
        ("?x=1", "/?x=1"),
    ],
)
def test_addresses_as_people_type_them(site: Site, asked: str, sent: str) -> None:
    site.pages[sent.partition("?")[0]] = page()
    assert fetch(site.url(asked)) == BODY
    assert site.requests == [sent]


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "IMAGE/PNG; x=y", "application/octet-stream", "binary/octet-stream", None]
)
def test_content_types_that_may_be_pictures(site: Site, kind: str | None) -> None:
    site.pages["/picture.png"] = page(kind=kind)
    assert fetch(site.url()) == BODY


@pytest.mark.parametrize(
    ("kind", "words"),
    [("text/html; charset=utf-8", "web page"), ("application/json", "no picture"), ("video/mp4", "no picture")],
)
def test_content_types_that_are_no_pictures(site: Site, kind: str, words: str) -> None:
    site.pages["/picture.png"] = page(kind=kind)
    with pytest.raises(FetchError, match=words) as caught:
        fetch(site.url())
    assert kind.partition(";")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "404 Not Found: nothing is there"),
        (403, "403 Forbidden: .* download the file yourself"),
        (401, "401 Unauthorized: .*login"),
        (429, "429 Too Many Requests: .*wait"),
        (410, "410 Gone: .*removed"),
        (500, "500 Internal Server Error: .*try later"),
        (599, "599: .*try later"),
        (204, "204 No Content"),
        (206, "206 Partial Content"),
        (304, "304 Not Modified"),
    ],
)
def test_statuses_are_clear(site: Site, status: int, words: str) -> None:
    site.pages["/picture.png"] = page(status, b"" if status in (204, 304) else BODY)
    with pytest.raises(FetchError, match=words):
        fetch(site.url())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site: Site, status: int) -> None:
    site.pages["/relative"] = moved("picture.png", status)
    site.pages["/absolute"] = moved(site.url("/relative"), status)
    assert fetch(site.url("/absolute")) == BODY
    assert site.requests == ["/absolute", "/relative", "/picture.png"]


def test_a_redirect_in_raw_utf8_is_followed(site: Site) -> None:
    site.pages["/go"] = moved("/größe.png".encode().decode("latin-1"))
    site.pages["/gr%C3%B6%C3%9Fe.png"] = page()
    assert fetch(site.url("/go")) == BODY


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "FILE:/etc/passwd", "ftp://127.0.0.1/x.png", "data:image/png;base64,AAAA", "javascript:1"],
)
def test_a_redirect_to_another_scheme_is_refused(site: Site, location: str) -> None:
    site.pages["/go"] = moved(location)
    with pytest.raises(FetchError, match=r"redirects to .*only http:// and https://"):
        fetch(site.url("/go"))


def test_a_redirect_that_goes_nowhere(site: Site) -> None:
    site.pages["/go"] = page(302, b"", kind=None)
    with pytest.raises(FetchError, match="does not say where"):
        fetch(site.url("/go"))


def test_a_redirect_loop_ends(site: Site) -> None:
    site.pages["/a"], site.pages["/b"] = moved("/b"), moved("/a")
    with pytest.raises(FetchError, match="more than 5 times"):
        fetch(site.url("/a"))
    assert len(site.requests) == MAX_REDIRECTS + 1


def test_five_redirects_are_still_allowed(site: Site) -> None:
    for hop in range(MAX_REDIRECTS):
        site.pages[f"/{hop}"] = moved(f"/{hop + 1}")
    site.pages[f"/{MAX_REDIRECTS}"] = page()
    assert fetch(site.url("/0")) == BODY


def test_too_large_by_its_header(site: Site) -> None:
    site.pages["/picture.png"] = page(length=10**12)
    with pytest.raises(FetchError, match=r"too large: 1,000,000,000,000 bytes, and the limit is 20,971,520"):
        fetch(site.url())


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_while_it_streams(site: Site, chunked: bool) -> None:
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/png")
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while not site.closing.is_set():
            handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n" if chunked else bytes(4096))
            sent.append(4096)

    site.pages["/picture.png"] = endless
    with pytest.raises(FetchError, match="too large: it went on past the limit of 100,000 bytes"):
        fetch(site.url(), limit=100_000)
    time.sleep(0.05)
    assert sum(sent) < 30_000_000  # what fits in socket buffers, then the line was cut


def test_the_limit_itself_is_allowed(site: Site) -> None:
    assert fetch(site.url(), limit=len(BODY)) == BODY
    site.pages["/picture.png"] = page(length=None)
    assert fetch(site.url(), limit=len(BODY)) == BODY
    for length in (-1, None):
        site.pages["/picture.png"] = page(length=length)
        with pytest.raises(FetchError, match="too large"):
            fetch(site.url(), limit=len(BODY) - 1)


def test_a_chunked_body_arrives(site: Site) -> None:
    body = b"".join(
        f"{len(BODY[i : i + 100]):x}\r\n".encode() + BODY[i : i + 100] + b"\r\n" for i in range(0, len(BODY), 100)
    )
    site.pages["/picture.png"] = page(body=body + b"0\r\n\r\n", length=None, Transfer_Encoding="chunked")
    assert fetch(site.url()) == BODY


def _body_drips(site: Site, handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    site.drip(handler.wfile.write, bytes(1000))


def _headers_drip(site: Site, handler: BaseHTTPRequestHandler) -> None:
    site.drip(handler.wfile.write, b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nX-Long: " + b"a" * 1000)


def _one_redirect_after_another(site: Site, handler: BaseHTTPRequestHandler) -> None:
    site.closing.wait(0.15)
    moved("/slow")(handler)


def _nothing_comes(site: Site, handler: BaseHTTPRequestHandler) -> None:
    site.closing.wait(10)


@pytest.mark.parametrize("slow", [_body_drips, _headers_drip, _one_redirect_after_another, _nothing_comes])
def test_the_time_limit_is_for_everything_together(
    site: Site, slow: Callable[[Site, BaseHTTPRequestHandler], None]
) -> None:
    site.pages["/slow"] = lambda handler: slow(site, handler)
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"not complete within 0\.4 s"):
        fetch(site.url("/slow"), timeout=0.4)
    assert 0.3 < time.monotonic() - start < 5


def test_a_slow_look_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [over.wait(10)][1:])
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"not complete within 0\.2 s"):
        fetch("http://slow.example/x.png", timeout=0.2)
    over.set()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "route", [page(length=10_000), page(body=b"1000\r\n1234", length=None, Transfer_Encoding="chunked")]
)
def test_a_truncated_body(site: Site, route: Route) -> None:
    site.pages["/picture.png"] = route
    with pytest.raises(FetchError, match=r"cut short: 2,048 of 10,000 bytes|IncompleteRead"):
        fetch(site.url())


def test_an_empty_body(site: Site) -> None:
    site.pages["/picture.png"] = page(body=b"")
    with pytest.raises(FetchError, match="empty"):
        fetch(site.url())


def test_a_compressed_body_is_refused(site: Site) -> None:
    site.pages["/picture.png"] = page(Content_Encoding="gzip")
    with pytest.raises(FetchError, match="'gzip'"):
        fetch(site.url())


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(FetchError, match=r"host 'nowhere\.example' is not known .*Name or service not known"):
        fetch("https://nowhere.example/x.png")


def _dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_refused_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{_dead_port()}/x.png"
    with pytest.raises(FetchError, match=r"no connection to 127\.0\.0\.1:\d+ \(Connection refused\)$"):
        fetch(url)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(FetchError, match="HTTPS_PROXY is not used, so download the file yourself"):
        fetch(url)


def test_the_environment_cannot_send_the_request_elsewhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_dead_port()}")
    assert fetch(site.url()) == BODY


def test_the_next_address_is_tried(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, [("127.0.0.1", _dead_port()), ("127.0.0.1", site.port)])
    assert fetch("http://two.example/picture.png") == BODY
    assert site.headers[0]["host"] == "two.example"


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"])
def test_an_answer_that_is_no_http(talker: Callable[[bytes], int], data: bytes) -> None:
    with pytest.raises(FetchError, match="the answer is broken or is no HTTP"):
        fetch(f"http://127.0.0.1:{talker(data)}/x.png", timeout=5)


def test_a_server_that_hangs_up(talker: Callable[[bytes], int]) -> None:
    with pytest.raises(FetchError, match="cannot fetch"):
        fetch(f"http://127.0.0.1:{talker(b' ')}/x.png", timeout=5)


def test_tls_against_a_server_that_speaks_none(site: Site) -> None:
    with pytest.raises(FetchError, match="no secure connection"):
        fetch(site.url().replace("http:", "https:"), timeout=5)


def test_a_tls_handshake_that_hangs_is_cut(talker: Callable[[bytes], int]) -> None:
    with pytest.raises(FetchError, match=r"not complete within 0\.3 s"):
        fetch(f"https://127.0.0.1:{talker(b'')}/x.png", timeout=0.3)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command makes the certificate")
def test_tls_certificates_are_checked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    monkeypatch.setattr(site.server, "handle_error", lambda *_: None)
    url = f"https://localhost:{site.port}/picture.png"
    resolves_to(monkeypatch, [("127.0.0.1", 0)])
    with pytest.raises(FetchError, match=r"certificate is not valid \(self.signed certificate\)"):
        fetch(url, timeout=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(url, timeout=5) == BODY
    with pytest.raises(FetchError, match=r"certificate is not valid .*[Hh]ostname mismatch"):
        fetch(url.replace("localhost", "other.example"), timeout=5)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "not 'file'"),
        ("ftp://example.org/x.png", "not 'ftp'"),
        ("s3://bucket/x.png", "not 's3'"),
        ("data:image/png;base64,AAAA", "not 'data'"),
        ("/etc/passwd", "not 'nothing'"),
        ("http:///x.png", "names no host"),
        ("http://[::1/x.png", "not a valid address"),
        ("http://example.org:99999/x.png", "not a valid address"),
        ("http://" + "ä" * 70 + ".org/", "not a valid address"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        fetch(url)


def test_a_password_is_neither_sent_nor_shown(site: Site) -> None:
    secret = site.url().replace("http://", "http://me:hunter2@")
    with pytest.raises(FetchError, match="user name") as caught:
        fetch(secret)
    assert "hunter2" not in str(caught.value)
    site.pages["/go"] = moved(secret)
    with pytest.raises(FetchError, match="user name") as caught:
        fetch(site.url("/go"))
    assert "hunter2" not in str(caught.value)
    assert site.requests == ["/go"]


def test_the_port_is_named_only_where_it_is_not_the_schemes_own() -> None:
    hosts = {
        "http://a.org/": "a.org",
        "http://a.org:80/": "a.org",
        "https://a.org:443/": "a.org",
        "https://a.org:80/": "a.org:80",
        "http://[::1]:8/": "[::1]:8",
        "http://bücher.example/": "xn--bcher-kva.example",
    }
    assert {url: _Target.parse(url, None).host_header for url in hosts} == hosts


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_refused_where_private_addresses_are(site: Site, host: str) -> None:
    with pytest.raises(FetchError, match=r"not public|not known"):
        fetch(f"http://{host}:{site.port}/picture.png", allow_private=False)
    assert site.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::8.8.8.8", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.8.8.8", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("239.1.1.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff0e::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2001:0:1:2:3:4:5:6", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert _is_public(address) is public


def test_one_private_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, [("8.8.8.8", 80), ("10.0.0.1", 80)])
    with pytest.raises(FetchError, match="not public") as caught:
        fetch("http://mixed.example/x.png", allow_private=False)
    assert "10.0.0.1" not in str(caught.value)  # an inner address is nobody's business


def test_the_connection_goes_to_the_address_that_was_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolves_to(monkeypatch, [("127.0.0.1", site.port)], [("127.0.0.1", _dead_port())])
    checked: list[str] = []

    def approve(address: str) -> bool:
        checked.append(address)
        return True

    monkeypatch.setattr("sparring.images.fetch._is_public", approve)
    assert fetch("http://rebinds.example/picture.png", allow_private=False) == BODY
    assert asked == ["rebinds.example"]
    assert checked == ["127.0.0.1"]


def test_every_hop_is_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/go"] = moved(f"http://inner.example:{site.port}/picture.png")
    resolves_to(monkeypatch, [("127.0.0.1", site.port)], [("127.0.0.2", site.port)])
    monkeypatch.setattr("sparring.images.fetch._is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(FetchError, match=r"inner\.example.* not public"):
        fetch("http://outer.example/go", allow_private=False)
    assert site.requests == ["/go"]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"timeout": 0.0}, {"timeout": float("nan")}])
def test_limits_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="positive"):
        fetch("http://127.0.0.1/", **wrong)


def test_a_fetch_error_is_a_load_error() -> None:
    assert issubclass(FetchError, LoadError)
