"""A proxy is asked where that was asked for, and never for what may not be reached."""

import socket
import ssl
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, FetchFault, HttpFetcher
from pipeline.proxies import proxies_of_environment

PICTURE = bytes(range(256)) * 40
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


class Origin(BaseHTTPRequestHandler):
    """A web site; HTTP/1.0, so each answer ends its connection."""

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        if self.path == "/to-inside":
            return self._answer(302, b"", "http://inside.test/")
        if self.path == "/to-itself":
            return self._answer(302, b"", "/to-itself")
        if self.path == "/drips":
            self._answer(200, b"", length=80)
            for _ in range(80):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return None
        return self._answer(200, PICTURE)

    def _answer(self, status: int, body: bytes, location: str = "", length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


class Proxy:
    """A forward proxy on loopback: whatever the host, it leads to the same port of loopback."""

    def __init__(self) -> None:
        self.heads: list[list[str]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer = self.listener.accept()[0]
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        head = b""
        with peer, socket.socket() as origin, suppress(OSError):
            while b"\r\n\r\n" not in head:
                head += peer.recv(4096)
            lines = head.decode("latin-1").split("\r\n")
            self.heads.append([*lines])
            method, target, version = lines[0].split()
            host, _, path = target.removeprefix("http://").partition("/")
            if host.startswith("forbidden.test"):
                peer.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            origin.connect_ex(("127.0.0.1", int(host.rpartition(":")[2])))  # not on record
            if method == "CONNECT":
                peer.sendall(b"HTTP/1.1 200 Established\r\n\r\n")
                threading.Thread(target=_pipe, args=(peer, origin), daemon=True).start()
            else:
                lines[0] = f"{method} /{path} {version}"
                origin.sendall("\r\n".join(lines).encode("latin-1"))
            _pipe(origin, peer)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # or `accept` would take one more
        self.listener.close()

    def asked(self) -> list[str]:
        return [lines[0] for lines in self.heads]


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(4096):
            target.sendall(data)


def _serve(tls: ssl.SSLContext | None = None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    server.asked = []
    server.handle_error = lambda *_: None
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    return server


@pytest.fixture
def origin():
    server = _serve()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(monkeypatch, web):
    """A proxy that the environment names."""
    proxy = Proxy()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.address[1]}")
    web.names |= {"outside.test": [web.OUTSIDE], "inside.test": ["10.0.0.1"]}
    yield proxy
    proxy.close()


def _fetcher(**options) -> HttpFetcher:
    return HttpFetcher(FetchConfig(**{"retries": 0, "proxy_from_environment": True, **options}))


def _fault(url: str, **options) -> str:
    with pytest.raises(FetchFault) as caught:
        _fetcher(**options)(url)
    return str(caught.value)


def test_without_the_option_no_connection_to_the_proxy_is_tried(web, origin, proxy):
    fetch = _fetcher(proxy_from_environment=False)
    assert fetch(f"http://outside.test:{origin.server_port}/a") == PICTURE
    assert web.attempts == [(web.OUTSIDE, origin.server_port)]
    assert proxy.asked() == []


def test_http_is_asked_for_in_full_at_the_proxy(web, origin, proxy):
    where = f"outside.test:{origin.server_port}"
    assert _fetcher()(f"http://{where}/a?b=c#fragment") == PICTURE
    assert proxy.asked() == [f"GET http://{where}/a?b=c HTTP/1.1"]
    assert origin.asked == [(where, "/a?b=c")]
    assert web.attempts == [proxy.address]


def test_https_goes_through_a_tunnel_and_its_certificate_is_verified(
    web, proxy, monkeypatch, tmp_path
):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("outside.test").configure_cert(context)
    server = _serve(context)
    web.names["other.test"] = [web.OUTSIDE]
    outside, other = (f"{name}.test:{server.server_port}" for name in ("outside", "other"))
    try:
        assert _fault(f"https://{outside}/a") == "failed:tls"  # signed by nobody who is known
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert _fetcher()(f"https://{outside}/a") == PICTURE
        assert _fault(f"https://{other}/a") == "failed:tls"
    finally:
        server.shutdown()
        server.server_close()
    assert [line.split()[:2] for line in proxy.asked()] == [
        ["CONNECT", where] for where in (outside, outside, other)
    ]
    assert set(web.attempts) == {proxy.address}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["inside.test", "10.0.0.1", "127.1", "2130706433", "[::1]", "[::ffff:10.0.0.1]"]
)
def test_what_may_not_be_reached_is_not_asked_for(web, proxy, scheme, host):
    assert _fault(f"{scheme}://{host}/a") == "failed:blocked_address"
    assert proxy.asked() == []
    assert web.attempts == []


def test_redirects_are_checked_and_bounded_behind_a_proxy(origin, proxy):
    root = f"http://outside.test:{origin.server_port}"
    assert _fault(f"{root}/to-inside") == "failed:blocked_address"
    assert _fault(f"{root}/to-itself") == "failed:redirects"
    assert len(proxy.asked()) == 2


def test_a_host_that_is_allowed_is_asked_for_wherever_it_is(origin, proxy):
    root = f"http://inside.test:{origin.server_port}"
    assert _fetcher(allow_host=("inside.test",))(f"{root}/a") == PICTURE
    assert len(proxy.asked()) == 1


def test_a_name_that_only_the_proxy_resolves_is_asked_for(web, origin, proxy):
    """But no number: the proxy may understand one that nothing here does."""

    def unknown():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    web.names |= {"elsewhere.test": unknown, "127.2": unknown, "0x7f.1": unknown}
    assert _fetcher()(f"http://elsewhere.test:{origin.server_port}/a") == PICTURE
    assert _fault(f"http://127.2.:{origin.server_port}/a") == "failed:blocked_address"
    assert _fault(f"http://0x7f.1:{origin.server_port}/a") == "failed:blocked_address"
    assert len(proxy.asked()) == 1


def test_hosts_of_no_proxy_are_reached_directly_and_guarded(web, origin, proxy, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "outside.test, .inside.test,127.0.0.1")
    assert _fetcher()(f"http://outside.test:{origin.server_port}/a") == PICTURE
    assert _fault("http://inside.test/") == "failed:blocked_address"
    assert _fault("http://127.0.0.1/") == "failed:blocked_address"
    assert proxy.asked() == []
    assert web.attempts == [(web.OUTSIDE, origin.server_port)]


def test_bytes_and_time_are_bounded_behind_a_proxy(origin, proxy):
    root = f"http://outside.test:{origin.server_port}"
    assert _fault(f"{root}/a", max_download_bytes=len(PICTURE) - 1) == "failed:too_large"
    begun = time.monotonic()
    assert _fault(f"{root}/drips", timeout_s=0.5, total_timeout_s=0.5) == "failed:timeout"
    assert time.monotonic() - begun < 3


def test_a_proxy_that_refuses_or_is_not_there_is_no_fault_of_the_picture(web, proxy):
    web.names["forbidden.test"] = [web.OUTSIDE]
    assert _fault("https://forbidden.test/a") == "failed:proxy"
    assert _fault("http://forbidden.test/a") == "failed:http_403"
    proxy.close()
    assert _fault("http://outside.test/a") == "failed:proxy"


def test_the_proxy_is_told_its_user_and_the_origin_is_not(origin, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:a%40b@127.0.0.1:{proxy.address[1]}")
    monkeypatch.setenv("https_proxy", f"http://me:a%40b@127.0.0.1:{proxy.address[1]}")
    _fetcher()(f"http://outside.test:{origin.server_port}/a")
    assert _fault(f"https://outside.test:{origin.server_port}/a") == "failed:tls"
    assert all("bWU6YUBi" in "".join(lines) for lines in proxy.heads)
    assert len(proxy.heads) == 2


@pytest.mark.parametrize("value", ["socks5://a.org:1080", "https://a.org", "http://", "a b:1"])
def test_what_is_no_http_proxy_is_refused_without_its_password(proxy, monkeypatch, value):
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError, match="HTTPS_PROXY is not of the form"):
        FetchConfig(proxy_from_environment=True)
    FetchConfig()


def test_a_proxy_needs_no_scheme(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "proxy.test:3128")
    assert proxies_of_environment()["http"].url == "http://proxy.test:3128"
