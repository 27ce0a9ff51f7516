"""A web that means harm: each of its rows ends with its outcome, in time, and no other is lost.

Names resolve through a stub and every connection is recorded: the fetcher has its default guard,
and one address of the open web, which the stub leads to loopback, is all that it may try.
"""

import gzip
import itertools
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa
import pytest
import trustme

from pipeline.download import download
from pipeline.fetch import FetchConfig, HttpFetcher
from pipeline.pictures import PictureConfig
from pipeline.schemas import SLICE

FETCH = FetchConfig(
    timeout_s=1.0, total_timeout_s=2.0, max_download_bytes=1 << 20, retries=1, per_host=32
)
Talk = Callable[[socket.socket], None]


def _answer(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None):
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _says(data: bytes) -> Talk:
    return lambda peer: peer.sendall(data)


def _drips(data: bytes, every: bytes = b"x") -> Talk:
    """`data`, then `every` twenty times a second for ten seconds."""

    def talk(peer: socket.socket) -> None:
        peer.sendall(data)
        for _ in range(200):
            peer.sendall(every)
            time.sleep(0.05)

    return talk


def _floods(data: bytes, more: bytes) -> Talk:
    def talk(peer: socket.socket) -> None:
        peer.sendall(data)
        while True:
            peer.sendall(more)

    return talk


def _resets(data: bytes) -> Talk:
    def talk(peer: socket.socket) -> None:
        peer.sendall(data)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return talk


def _moved(target: str) -> Talk:
    return _says(_answer(b"", f"Location: {target}", status="302 Found"))


def _png_of_size(side: int) -> bytes:
    """A PNG whose header claims to be square and large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, packed, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _cases(jpeg: bytes, png: bytes) -> dict[str, tuple[Talk, str]]:
    """Path to how the server misbehaves there, and what the row's outcome is."""
    ok = _answer(jpeg)
    image = "Content-Type: image/jpeg"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    bomb = gzip.compress(bytes(20 << 20))
    return {
        # time
        "silent": (_drips(b"", b""), "timeout"),
        "drips-status": (_drips(b"HTTP/1.1 "), "timeout"),
        "drips-header": (_drips(b"HTTP/1.1 200 OK\r\nX: "), "timeout"),
        "drips-headers": (_drips(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), "timeout"),
        "drips-body": (_drips(_answer(length=80_000)), "timeout"),
        "drips-chunks": (_drips(chunked, b"1\r\nx\r\n"), "timeout"),
        "drips-chunk-size": (_drips(chunked, b"0"), "timeout"),
        "drips-trailers": (_drips(chunked + b"1\r\nx\r\n0\r\n", b"X: y\r\n"), "timeout"),
        "stalls": (_drips(_answer(jpeg[:99], length=len(jpeg)), b""), "timeout"),
        "continues": (_drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "timeout"),
        # size
        "endless-body": (_floods(b"HTTP/1.1 200 OK\r\n\r\n", bytes(9999)), "too_large"),
        "endless-chunks": (_floods(chunked, b"fff\r\n" + bytes(4095) + b"\r\n"), "too_large"),
        "endless-line": (_floods(b"HTTP/1.1 200 ", b"x" * 9999), "connection"),
        "endless-header": (_floods(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 9999), "connection"),
        "endless-headers": (_floods(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "connection"),
        "claims-much": (_says(_answer(jpeg, length=1 << 60)), "too_large"),
        "gzip-bomb": (_says(_answer(bomb, "Content-Encoding: gzip")), "too_large"),
        "bomb-in-bomb": (
            _says(_answer(gzip.compress(bomb), "Content-Encoding: gzip, gzip")),
            "too_large",
        ),
        "many-packings": (
            _says(_answer(jpeg, "Content-Encoding: " + ", ".join(["gzip"] * 50))),
            "connection",
        ),
        "huge-png": (_says(_answer(_png_of_size(100_000))), "dropped:too_many_pixels"),
        # lengths and framing
        "claims-more": (_says(_answer(jpeg, length=len(jpeg) + 1)), "truncated"),
        "claims-less": (_says(_answer(jpeg, length=len(jpeg) // 2)), "truncated"),
        "claims-nothing": (_says(_answer(jpeg, length=0)), "not_a_picture"),
        "chunks-end-early": (_says(chunked + b"ff\r\nabc"), "truncated"),
        "chunks-of-nonsense": (_says(chunked + b"zz\r\nabc\r\n"), "truncated"),
        "not-packed": (_says(_answer(jpeg, "Content-Encoding: gzip")), "connection"),
        "no-http": (_says(b"\x00\xff\x01 SSH-2.0-x\r\n\r\n"), "connection"),
        "hangs-up": (_says(b""), "connection"),
        "resets": (_resets(b""), "connection"),
        "resets-body": (_resets(_answer(jpeg[:99], length=len(jpeg))), "connection"),
        "odd-status": (_says(_answer(jpeg, status="999 What")), "http_999"),
        "teapot": (_says(_answer(b"", status="418 Teapot")), "http_418"),
        "busy": (_says(_answer(b"", "Retry-After: 9", status="429 Busy")), "http_429"),
        "busy-for-ever": (
            _says(_answer(b"", "Retry-After: " + "9" * 5000, status="503 Busy")),
            "http_503",
        ),
        # redirects
        "to-itself": (_moved("/to-itself"), "redirects"),
        "to-ping": (_moved("/to-pong"), "redirects"),
        "to-pong": (_moved("/to-ping"), "redirects"),
        "to-file": (_moved("file:///etc/passwd"), "bad_scheme"),
        "to-data": (_moved("data:image/png;base64,AAAA"), "bad_scheme"),
        "to-gopher": (_moved("gopher://127.0.0.1:6379/_INFO"), "bad_scheme"),
        "to-loopback": (_moved("http://127.0.0.1:8080/fine"), "blocked_address"),
        "to-metadata": (_moved("http://169.254.169.254/latest/"), "blocked_address"),
        "to-mapped": (_moved("http://[::ffff:10.0.0.1]/"), "blocked_address"),
        "to-number": (_moved("http://2130706433/"), "blocked_address"),
        "to-private-name": (_moved("http://inside.test/"), "blocked_address"),
        "to-protocol-relative": (_moved("//inside.test/"), "blocked_address"),
        "to-backslash": (_moved("http://127.0.0.1\\@outside.test/"), "bad_url"),
        "to-user": (_moved("http://outside.test@127.0.0.1/"), "bad_url"),
        "to-nonsense": (_moved("http://[nonsense"), "bad_url"),
        # bodies
        "html": (_says(_answer(b"<!doctype html><p>hi", image)), "not_a_picture"),
        "svg": (
            _says(_answer(b"<svg onload='x()'/>", "Content-Type: image/svg+xml")),
            "not_a_picture",
        ),
        "empty": (_says(_answer(b"", image)), "not_a_picture"),
        "cut-jpeg": (_says(_answer(jpeg[: len(jpeg) // 2])), "truncated"),
        "cut-png": (_says(_answer(png[: len(png) // 2])), "truncated"),
        "script-as-gif": (
            _says(_answer(b"GIF89a/*\x00*/=alert(1);//" + bytes(50))),
            "not_a_picture",
        ),
        # what is odd but harmless
        "jpeg-and-zip": (_says(_answer(jpeg + b"PK\x03\x04 zip behind it")), "kept"),
        "odd-headers": (_says(_answer(jpeg, "X-\xff\xfe: \xc3\x28\x80", "no colon")), "kept"),
        "wrong-type": (_says(_answer(png, "Content-Type: text/html; charset=\xff")), "kept"),
        "more-than-said": (_says(ok + b"HTTP/1.1 200 OK\r\n\r\nsmuggled"), "kept"),
        # wishes
        "opts-out": (_says(_answer(jpeg, "X-Robots-Tag: noai")), "opt_out"),
        "reserves": (_says(_answer(jpeg, "TDM-Reservation: 1")), "opt_out"),
        **{f"fine-{n}": (_says(ok), "kept") for n in range(8)},
    }


class Hostile:
    """Talks on a port as the path wants it to, each connection in a thread of its own."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self._talk = talk
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(10)  # a thread of the test must not outlive it for long
            with suppress(OSError):
                self._talk(peer)


def _by_path(cases: dict[str, tuple[Talk, str]]) -> Talk:
    def talk(peer: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            more = peer.recv(4096)
            if not more:
                return
            request += more
        cases[request.split()[1].decode().strip("/")][0](peer)

    return talk


def _in_tls(authority: trustme.CA, name: str) -> Talk:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)

    def talk(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as shielded:
            shielded.recv(4096)

    return talk


@pytest.fixture
def hostile(web, encode, noise):
    """Rows of a source, as URL and outcome, and the ports that they may lead to."""
    web.names |= {
        "outside.test": [web.OUTSIDE],
        "inside.test": ["10.0.0.1"],
        "partly.test": [web.OUTSIDE, "192.168.0.1"],
        "mapped.test": ["::ffff:169.254.169.254"],
        "rebinds.test": itertools.cycle([[web.OUTSIDE], ["127.0.0.1"]]).__next__,
    }
    picture = noise(0, 64, 48)
    cases = _cases(encode(picture, "JPEG"), encode(picture, "PNG"))
    servers = [Hostile(_by_path(cases))]
    tls = {
        "silent": _drips(b"", b""),
        "drips": _drips(b"\x16\x03\x03\x40\x00", b"\x02"),
        "plain": _says(_answer(b"")),
        "unknown": _in_tls(trustme.CA(), "outside.test"),
    }
    servers += [Hostile(talk) for talk in tls.values()]
    ports = [server.port for server in servers]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but it does not listen
        ports.append(closed.getsockname()[1])
        rows = [(f"http://outside.test:{ports[0]}/{path}", c[1]) for path, c in cases.items()]
        expected = ("timeout", "timeout", "tls", "tls")
        rows += [
            (f"https://outside.test:{port}/", word)
            for port, word in zip(ports[1:], expected, strict=False)
        ]
        rows += [
            (f"http://outside.test:{ports[-1]}/", "refused"),
            ("http://nowhere.test/", "dns"),
            ("http://inside.test/", "blocked_address"),
            (f"http://partly.test:{ports[0]}/fine-0", "blocked_address"),
            ("http://mapped.test/", "blocked_address"),
            ("http://169.254.169.254/latest/meta-data/", "blocked_address"),
            (f"http://localhost:{ports[0]}/fine-0", "blocked_address"),
            (f"http://127.0.0.1\\@outside.test:{ports[0]}/fine-0", "bad_url"),
            ("file:///etc/passwd", "bad_scheme"),
        ]
        yield rows, ports
    for server in servers:
        server.listener.close()


def test_each_row_of_a_hostile_web_ends_with_its_outcome_in_time(web, hostile):
    rows, ports = hostile
    urls = [url for url, _ in rows]
    columns = {
        "uid": [number.to_bytes(16, "big") for number in range(len(urls))],
        "url": urls,
        "captions": [["a caption"]] * len(urls),
        "source_row": range(len(urls)),
    }
    begun = time.monotonic()
    got = download(pa.table(columns, schema=SLICE), HttpFetcher(FETCH), PictureConfig(), threads=32)
    seconds = time.monotonic() - begun
    outcomes = got.ledger.column("outcome").to_pylist()
    expected = [w if w == "kept" or ":" in w else f"failed:{w}" for _, w in rows]
    wrong = {
        url: (outcome, word)
        for url, outcome, word in zip(urls, outcomes, expected, strict=True)
        if outcome != word
    }
    assert wrong == {}
    assert got.raw.num_rows == expected.count("kept")
    assert seconds < 30
    assert {host for host, _ in web.attempts} == {web.OUTSIDE}
    assert {port for _, port in web.attempts} <= set(ports)


def test_a_slow_host_takes_no_row_but_its_own_and_the_shard_ends_in_time(web, encode, noise):
    jpeg = encode(noise(0, 64, 48), "JPEG")
    slow = [
        _drips(_answer(length=80_000)),
        _drips(b"HTTP/1.1 200 OK\r\nX: "),
        _drips(b"", b""),
        _says(_answer(b"", "Retry-After: 1", status="429 Busy")),
    ]
    talks = {f"slow-{n}": (talk, "") for n, talk in enumerate(slow)}
    talks["fine"] = (_says(_answer(jpeg)), "")
    server = Hostile(_by_path(talks))
    port = server.port
    talks["to-slow"] = (_moved(f"http://slow.test:{port}/slow-0"), "")
    names = ["slow.test", "moves.test", *(f"fine-{n}.test" for n in range(20))]
    web.names |= {name: [web.OUTSIDE] for name in names}
    urls = [f"http://slow.test:{port}/slow-{n % 4}" for n in range(100)]
    urls += [f"http://moves.test:{port}/to-slow" for _ in range(20)]
    urls += [f"http://fine-{n % 20}.test:{port}/fine" for n in range(60)]
    columns = {
        "uid": [number.to_bytes(16, "big") for number in range(len(urls))],
        "url": urls,
        "captions": [[]] * len(urls),
        "source_row": range(len(urls)),
    }
    patient = FetchConfig(timeout_s=30.0, total_timeout_s=60.0, per_host=4)
    begun = time.monotonic()
    got = download(
        pa.table(columns, schema=SLICE),
        HttpFetcher(patient),
        PictureConfig(),
        threads=16,
        per_host=4,
        timeout_s=3.0,
    )
    seconds = time.monotonic() - begun
    server.listener.close()
    outcomes = got.ledger.column("outcome").to_pylist()
    assert outcomes[120:] == ["kept"] * 60
    assert set(outcomes[:120]) <= {"failed:deadline", "failed:http_429"}
    assert outcomes.count("failed:deadline") > 90
    assert 3.0 <= seconds < 10


def test_a_name_that_rebinds_gains_nothing(web, hostile):
    _, ports = hostile
    fetch = HttpFetcher(FETCH)
    outcomes = set()
    for _ in range(6):
        try:
            outcomes.add(len(fetch(f"http://rebinds.test:{ports[0]}/fine-0")) > 0)
        except Exception as fault:
            outcomes.add(str(fault))
    assert outcomes == {True, "failed:blocked_address"}
    assert {host for host, _ in web.attempts} == {web.OUTSIDE}
