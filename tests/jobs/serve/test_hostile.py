"""What clients may do to the server: each is answered with a 4xx, and others are served."""

import contextlib
import io
import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

LIMIT = 1 << 20
"""Bytes of a body, as the fixture has it."""


def raw(port: int, *parts: bytes, wait_s: float = 0.0, timeout_s: float = 60.0) -> bytes:
    """Send parts over one connection, with a wait between them; all that comes back."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        with contextlib.suppress(ConnectionError):
            for number, part in enumerate(parts):
                time.sleep(wait_s if number else 0)
                connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
                if is_whole(received):
                    break
    return received


def is_whole(answer: bytes) -> bool:
    """Whether an answer has all of its body."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    return bool(lengths) and len(body) >= lengths[0]


def status_of(answer: bytes) -> int:
    """Of HTTP; 0 where there was no answer."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def post(path: str, body: bytes, kind: str = "application/json", *more: str) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def search_for(**fields) -> bytes:
    return post("/v1/search", json.dumps(fields).encode())


def noise(row: int, size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """A picture file."""
    pixels = np.random.default_rng(row).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels; its few bytes unpack to black rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(min((width // 8 + 1) * height, 4 << 20)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def get(path: str, *headers: str, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def as_json(value: object) -> bytes:
    return post("/v1/search", json.dumps(value).encode())


def as_body(body: bytes, kind: str = "application/json") -> bytes:
    return post("/v1/search", body, kind)


def picture(body: bytes, query: str = "", kind: str = "image/png") -> bytes:
    return post(f"/v1/search{query}", body, kind)


WRONG_JSON = {
    "nothing": b"",
    "no JSON": b"text=boat",
    "cut short": b'{"text": "a bo',
    "two values": b'{"text": "a"} {"text": "b"}',
    "a list": b'["text"]',
    "a number": b"3",
    "null": b"null",
    "NaN": b'{"text": "a", "k": NaN}',
    "infinity": b'{"text": "a", "k": 1e999}',
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "a lone surrogate": b'{"text": "\\ud800"}',
    "deep lists": b'{"text": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "deep objects": b'{"text": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "many keys": json.dumps({f"k{n}": n for n in range(3000)}).encode(),
    "a huge number": b'{"text": "a", "k": ' + b"9" * 20_000 + b"}",
    "UTF-16": '{"text": "a"}'.encode("utf-16"),
    "zeros": bytes(1000),
}
WRONG_FIELDS = [
    {},
    {"text": None},
    {"text": ""},
    {"text": " \t\n"},
    {"text": "\u0000\u0001"},
    {"text": 3},
    {"text": ["a"]},
    {"text": {"a": "b"}},
    {"text": True},
    {"text": "a" * 2001},
    {"text": "a", "k": 0},
    {"text": "a", "k": -1},
    {"text": "a", "k": 101},
    {"text": "a", "k": 10**30},
    {"text": "a", "k": 2.5},
    {"text": "a", "k": "3"},
    {"text": "a", "k": True},
    {"text": "a", "k": None},
    {"text": "a", "rerank": -1},
    {"text": "a", "rerank": 129},
    {"text": "a", "rerank": [1]},
    {"text": "a", "find": "files"},
    {"text": "a", "find": 1},
    {"text": "a", "url": "http://169.254.169.254/latest/meta-data/"},
    {"picture": "file:///etc/passwd"},
    {"picture": "http://127.0.0.1/"},
    {"__proto__": {"k": 1}, "text": "a"},
    {"uid": "0" * 32},
    {"uid": "../../etc/passwd"},
    {"uid": "G" * 32},
    {"uid": "a" * 31},
    {"uid": "\u0661" * 32},
    {"uid": 5},
]
WRONG_PATHS = [
    "/v1/pairs/../../etc/passwd",
    "/v1/pairs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/pairs/..%5c..%5cwindows",
    "/v1/pairs/%00",
    "/v1/pairs/" + "0" * 32,
    "/v1/pairs/" + "0" * 32 + "/picture",
    "/v1/pairs/" + "A" * 32,
    "/v1/pairs/" + "a" * 5000,
    "/v1/pairs//picture",
    "//etc/passwd",
    "/../../etc/passwd",
    "/page.js/../../../access.py",
    "/static-offline-docs/../core.py",
    "/static-offline-docs/%2e%2e/core.py",
    "/static-offline-docs/..%2f..%2fcore.py",
    "/%",
    "/%ff%fe",
    "/.git/config",
    "/v1/search",  # GET
    "/wp-login.php?a=" + "b" * 4000,
]
WRONG_REQUESTS = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "nonsense": b"boat\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "another host": get("/healthz", host="evil.example"),
    "a rebound host": get("/v1/index", host="127.0.0.1.evil.example"),
    "two hosts": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
    "two lengths": b"POST /v1/search HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\nab",
    "a negative length": b"POST /v1/search HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    "a length in words": b"POST /v1/search HTTP/1.1\r\nHost: a\r\nContent-Length: ten\r\n\r\n",
    "a huge header": get("/healthz", "X: " + "a" * 100_000),
    "many headers": get("/healthz", *(f"X-{n}: {'a' * 50}" for n in range(2000))),
    "a line in a header": get("/healthz", "X: a\rb"),
    "a folded header's start": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "a header without a name": get("/healthz", ": a"),
    "a name that is not ASCII": b"GET / HTTP/1.1\r\nHost: a\r\n\xff\xfe: b\r\n\r\n",
    "a target that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "spaces in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "another method": get("/v1/search", method="DELETE"),
    "TRACE": get("/", method="TRACE"),
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "a URL as the target": get("http://evil.example/"),
    "a method that is none": get("/", method="B" * 500),
    "wrong chunks": b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "length and chunks": b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a packed body": post("/v1/search", zlib.compress(bytes(1 << 20)), "application/json",
                          "Content-Encoding: gzip"),
    "no kind": post("/v1/search", b'{"text": "a"}', ""),
    "a form": post("/v1/search", b"text=a", "application/x-www-form-urlencoded"),
    "parts": post("/v1/search", b"--x--", "multipart/form-data; boundary=x"),
    "a page's text": post("/v1/search", b'{"text": "a"}', "text/plain"),
    "JSON and a query": post("/v1/search?k=3", b'{"text": "a"}'),
    "a sign-in without a token": post("/v1/sign-in", b'{"token": "guess"}'),
    "a body that is told to be huge": b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: image/png\r\nContent-Length: 99999999999999\r\n\r\n",
    "a larger JSON": as_json({"text": "a" * 70_000}),
    "a larger picture": picture(bytes(LIMIT + 1)),
    "a larger picture in chunks": b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"20000\r\n" + bytes(1 << 17) + b"\r\n",
}  # fmt: skip
WRONG_PICTURES = {
    "empty": picture(b""),
    "no picture": picture(b"<html>"),
    "zeros": picture(bytes(5000)),
    "a script": picture(
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>", kind="image/svg"
    ),
    "cut short": picture(noise(1)[:200]),
    "a bomb of pixels": picture(png_of(60_000, 60_000)),
    "a bomb by its sides": picture(png_of(2_000_000_000, 2)),
    "more pixels than the limit": picture(png_of(2000, 2000)),
    "no width": picture(png_of(0, 5)),
    "many profiles": picture(b"\x89PNG\r\n\x1a\n" + b"iCCP" * 100),
    "k twice": picture(noise(1), "?k=1&k=2"),
    "k of no number": picture(noise(1), "?k=many"),
    "another field": picture(noise(1), "?url=http://evil.example/"),
    "an uid beside it": picture(noise(1), "?uid=" + "0" * 32),
    "a long text": picture(noise(1), "?text=" + "a" * 3000),
    "percents": picture(noise(1), "?text=%00%01&k=%ff"),
}
HOSTILE = {
    **{f"JSON, {name}": as_body(body) for name, body in WRONG_JSON.items()},
    **{f"fields, {json.dumps(one)[:60]}": as_json(one) for one in WRONG_FIELDS},
    **{f"path, {path[:40]}": get(path) for path in WRONG_PATHS},
    **{f"request, {name}": request for name, request in WRONG_REQUESTS.items()},
    **{f"picture, {name}": request for name, request in WRONG_PICTURES.items()},
}
SLOW = {
    "says nothing": (b"",),
    "half a line": (b"GET / HT",),
    "headers, one a while": (b"GET / HTTP/1.1\r\nHost: a\r\n", *[b"X: a\r\n"] * 8),
    "half a body": (picture(noise(1))[:-50],),
    "a body, a byte a while": (picture(noise(1))[:-50], *[b"a"] * 8),
    "chunks, one a while": (
        b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        *[b"1\r\na\r\n"] * 8,
    ),
}


def test_a_hundred_hostile_requests_are_refused_while_others_are_served(serving):
    assert len(HOSTILE) + len(SLOW) > 100
    port = serving().port
    served: list[int] = []
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            served.append(status_of(raw(port, search_for(text="a red boat", k=2))))

    with ThreadPoolExecutor(16) as clients:
        good = [clients.submit(others) for _ in range(2)]
        slow = {n: clients.submit(raw, port, *parts, wait_s=0.4) for n, parts in SLOW.items()}
        quick = {name: clients.submit(raw, port, request) for name, request in HOSTILE.items()}
        answers = {name: one.result() for name, one in (quick | slow).items()}
        done.set()
        for one in good:
            one.result()
    wrong = {n: a[:200] for n, a in answers.items() if not 400 <= status_of(a) < 500}
    assert wrong == {}
    assert {name for name in SLOW if status_of(answers[name]) != 408} == set()
    assert set(served) == {200}
    assert len(served) > 10
    told = [answer.partition(b"\r\n\r\n")[2] for answer in answers.values()]
    read = json.JSONDecoder().raw_decode  # what follows is said of what came after the request
    assert all(list(read(body.decode())[0]) == ["error"] for body in told)
    for leak in (b"Traceback", b"root:", b"/home", b"site-packages", b".py"):
        assert not [body for body in told if leak in body]


def test_a_client_that_reads_nothing_is_cut_off(serving):
    server = serving()

    async def large(asked):
        from jobs.serve.replicas import Reply

        return Reply("d", [{"text": "a" * (8 << 20)}], 1, 0.0)

    server = serving(answer=large)
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(search_for(text="a"))
        wait_until(lambda: len(server.server.server_state.connections) == 1)
        wait_until(lambda: not server.server.server_state.connections)


def test_a_body_without_an_end_is_answered_and_then_cut_off(serving):
    server = serving()
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"20000\r\n" + bytes(1 << 17) + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):  # as it ends, one way or the other
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
    assert LIMIT < sent < 1 << 30
    wait_until(lambda: not server.server.server_state.connections)


def test_connections_that_ask_nothing_make_room_for_those_that_do(serving):
    server = serving(max_connections=20, request_timeout_s=30.0)
    with contextlib.ExitStack() as idle:
        silent = [
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            for _ in range(40)
        ]
        for _ in range(5):
            assert status_of(raw(server.port, search_for(text="a"))) == 200
        assert len(server.server.server_state.connections) <= 20
        assert status_of(silent[0].recv(1000)) == 408  # the oldest went first


def test_a_connection_is_used_again_until_its_next_request_is_too_slow(serving):
    port = serving().port
    request = search_for(text="a", k=1)
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        for _ in range(3):
            connection.sendall(request)
            answer = b""
            while not is_whole(answer):
                answer += connection.recv(65536)
            assert status_of(answer) == 200
        connection.sendall(request[:20])  # the head of another, and no more of it
        answer = b""
        while data := connection.recv(65536):  # until the server closes it
            answer += data
        assert status_of(answer) == 408


def test_a_request_may_begin_before_the_one_before_it_is_answered(serving):
    request = search_for(text="a", k=1)
    with socket.create_connection(("127.0.0.1", serving().port), 20) as connection:
        connection.sendall(request + request[:-5])
        answers = connection.recv(65536)
        assert status_of(answers) == 200
        time.sleep(0.2)
        connection.sendall(request[-5:])
        while answers.count(b"HTTP/1.1 200 OK") < 2:
            more = connection.recv(65536)
            assert more, answers
            answers += more


def wait_until(holds, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
