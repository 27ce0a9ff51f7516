"""Each way in which a picture does not arrive has its word, and nothing else ever comes out."""

import errno
import gzip
import os
import socket
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bodies import IN_MEMORY_BYTES
from pipeline.deadlines import ShardTime, on_time_of
from pipeline.errors import ConfigError
from pipeline.fetch import (
    FetchConfig,
    FetchFault,
    FolderFetcher,
    HttpFetcher,
    host_of,
)

PICTURE = bytes(range(256)) * 400
HERE = ("127.0.0.1",)
ONCE = FetchConfig(retries=0, threads=4, allow_host=HERE)
QUICK = FetchConfig(timeout_s=0.3, total_timeout_s=0.6, retries=0, threads=4, allow_host=HERE)


class Site(BaseHTTPRequestHandler):
    """A web site with one bad habit a path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.agents.append(self.headers["User-Agent"])
        self.server.encodings.append(self.headers["Accept-Encoding"])
        name = self.path.split("/")[1].partition("?")[0]
        getattr(self, f"get_{name}", self.get_picture)()

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def get_picture(self) -> None:
        self.answer(200, PICTURE)

    def get_absent(self) -> None:
        self.answer(404, b"no such picture")

    def get_flaky(self) -> None:
        first = self.server.asked[self.path] == 1
        self.answer(500, b"try again") if first else self.answer(200, PICTURE)

    def get_broken(self) -> None:
        self.answer(500, b"no")

    def get_patience(self) -> None:
        self.answer(503, Retry_After="3600")

    def get_tagged(self) -> None:
        self.answer(200, PICTURE, X_Robots_Tag="noai")

    def get_gone(self) -> None:
        self.answer(410, X_Robots_Tag="noindex")

    def get_crowd(self) -> None:
        with self.server.lock:
            self.server.inside += 1
            self.server.most_inside = max(self.server.most_inside, self.server.inside)
        time.sleep(0.02)
        with self.server.lock:
            self.server.inside -= 1
        self.answer(200, PICTURE)

    def get_busy(self) -> None:
        first = self.server.asked[self.path] == 1
        self.answer(429, Retry_After="3") if first else self.answer(200, PICTURE)

    def get_moved(self) -> None:
        self.answer(301, b"over there", Location="/picture")

    def get_nowhere(self) -> None:
        self.answer(302)

    def get_loop(self) -> None:
        self.answer(302, Location=self.path)

    def get_inside(self) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def get_misled(self) -> None:
        self.answer(302, Location="http://[nonsense")

    def get_short(self) -> None:
        self.answer(200, PICTURE[:-1], length=len(PICTURE))
        self.close_connection = True

    def get_bomb(self) -> None:
        self.answer(200, gzip.compress(bytes(3_000_000)), Content_Encoding="gzip")

    def get_large(self) -> None:
        self.answer(200, bytes(IN_MEMORY_BYTES) + b"a")

    def get_huge(self) -> None:
        self.answer(200, self.server.huge)

    def get_packed(self) -> None:
        self.answer(200, gzip.compress(PICTURE), Content_Encoding="gzip")

    def get_mispacked(self) -> None:
        self.answer(200, b"not packed at all", Content_Encoding="gzip")

    def get_chunks(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        self.close_connection = True

    def get_babble(self) -> None:
        self.wfile.write(b"\x00\x01 no HTTP \xff\r\n\r\n")
        self.close_connection = True

    def get_silence(self) -> None:
        self.close_connection = True

    def get_slow(self) -> None:
        self.server.closing.wait(5)
        self.close_connection = True

    def get_stalled(self) -> None:
        self.answer(200, PICTURE[:10], length=len(PICTURE))
        self.get_slow()

    def get_dripping(self) -> None:
        self.answer(200, length=80)
        for _ in range(80):
            self.wfile.write(b"x")
            self.wfile.flush()
            if self.server.closing.wait(0.05):
                break

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Counts what it is asked for, and who asks."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.asked: Counter[str] = Counter()
        self.agents: list[str] = []
        self.encodings: list[str] = []
        self.lock, self.inside, self.most_inside = threading.Lock(), 0, 0
        self.closing = threading.Event()
        self.huge = bytes(4 * IN_MEMORY_BYTES)
        self.root = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_) -> None:  # a client that hangs up is what these tests are about
        pass


@pytest.fixture(scope="module")
def site():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


_fetch_once = HttpFetcher(ONCE)


def fault(fetch, location: str) -> str:
    with pytest.raises(FetchFault) as caught:
        fetch(location)
    return str(caught.value)


def test_the_bytes_behind_a_url_arrive(site):
    fetch = HttpFetcher(ONCE)
    for path in ("/picture", "/packed", "/moved", "/a%20b?c=d#e", "/\u00e9 f"):
        assert fetch(site.root + path) == PICTURE
    assert fetch(site.root.replace("http", "HTTP") + "/picture") == PICTURE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(path=st.text(st.characters(), max_size=12))
def test_any_path_can_be_asked_for(site, path):
    assert _fetch_once(f"{site.root}/picture/{path}.") == PICTURE


def test_white_space_around_a_url_is_no_part_of_it(site):
    fetch = HttpFetcher(ONCE)
    assert fetch(f" {site.root}/picture\n") == PICTURE
    assert fetch(f"\t{site.root}/around ") == PICTURE
    assert site.asked["/around"] == 1


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("absent", "http_404"),
        ("broken", "http_500"),
        ("nowhere", "http_302"),
        ("loop", "redirects"),
        ("misled", "bad_url"),
        ("short", "truncated"),
        ("slow", "timeout"),
        ("stalled", "timeout"),
        ("babble", "connection"),
        ("silence", "connection"),
    ],
)
def test_what_a_server_does_wrong_has_its_word(site, path, outcome):
    config = QUICK if outcome == "timeout" else ONCE
    assert fault(HttpFetcher(config), f"{site.root}/{path}") == f"failed:{outcome}"


@pytest.mark.parametrize("path", ["mispacked", "chunks"])
def test_a_body_that_cannot_be_read_whole_is_a_fault(site, path):
    assert fault(HttpFetcher(ONCE), f"{site.root}/{path}").startswith("failed:")


def test_a_redirect_leads_to_no_file(site):
    outcome = fault(HttpFetcher(ONCE), f"{site.root}/inside")
    assert outcome in ("failed:bad_scheme", "failed:bad_url")


def test_a_body_over_the_bound_is_too_large(site):
    url = f"{site.root}/picture"
    assert (
        HttpFetcher(FetchConfig(allow_host=HERE, max_download_bytes=len(PICTURE)))(url) == PICTURE
    )
    config = FetchConfig(allow_host=HERE, max_download_bytes=len(PICTURE) - 1)
    assert fault(HttpFetcher(config), url) == "failed:too_large"


def test_the_bound_counts_bytes_as_unpacked(site):
    config = FetchConfig(allow_host=HERE, max_download_bytes=1_000_000)
    assert fault(HttpFetcher(config), f"{site.root}/bomb") == "failed:too_large"


def test_a_fault_that_may_pass_is_tried_again(site):
    fetch = HttpFetcher(FetchConfig(allow_host=HERE, retries=1))
    assert fetch(f"{site.root}/flaky/a") == PICTURE
    assert site.asked["/flaky/a"] == 2
    assert fault(HttpFetcher(ONCE), f"{site.root}/flaky/b") == "failed:http_500"


@pytest.mark.parametrize(("path", "tries"), [("broken", 3), ("absent", 1), ("silence", 3)])
def test_what_lasts_is_reported_after_as_many_tries_as_configured(site, path, tries, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    fault(HttpFetcher(FetchConfig(allow_host=HERE, retries=2)), f"{site.root}/{path}/lasting")
    assert site.asked[f"/{path}/lasting"] == tries


def test_a_server_does_not_decide_how_long_a_thread_waits(site, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    outcome = fault(HttpFetcher(FetchConfig(allow_host=HERE, retries=1)), f"{site.root}/patience")
    assert outcome == "failed:http_503"
    assert site.asked["/patience"] == 1
    assert not slept


def test_a_dripping_body_ends_at_the_total_timeout(site):
    begin = time.monotonic()
    assert fault(HttpFetcher(QUICK), f"{site.root}/dripping") == "failed:timeout"
    assert time.monotonic() - begin < 4 * QUICK.total_timeout_s  # dripping takes 4 s


@pytest.mark.parametrize("path", ["absent", "broken", "nowhere", "short", "mispacked"])
def test_a_fault_does_not_spoil_the_connection_for_the_next_picture(site, path):
    fetch = HttpFetcher(ONCE)
    for _ in range(3):
        fault(fetch, f"{site.root}/{path}")
        assert fetch(f"{site.root}/picture") == PICTURE


def test_a_picture_too_large_does_not_spoil_the_connection_either(site):
    fetch = HttpFetcher(FetchConfig(allow_host=HERE, max_download_bytes=1_000, retries=0))
    assert fault(fetch, f"{site.root}/picture") == "failed:too_large"
    assert fault(fetch, f"{site.root}/absent") == "failed:http_404"


def test_a_closed_port_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/picture"
        assert fault(HttpFetcher(ONCE), url) == "failed:refused"


@pytest.mark.usefixtures("web")
def test_a_name_that_does_not_resolve_is_dns():
    assert fault(HttpFetcher(ONCE), "http://nowhere.invalid/picture") == "failed:dns"


def test_a_name_is_asked_for_again_only_if_name_servers_did_not_answer(web, monkeypatch):
    def nobody_answers():
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(time, "sleep", lambda _: None)
    web.names["later.invalid"] = nobody_answers
    fetch = HttpFetcher(FetchConfig(retries=2))
    for name in ("later.invalid", "nowhere.invalid"):
        assert fault(fetch, f"http://{name}/picture") == "failed:dns"
    assert Counter(web.asked) == {"later.invalid": 3, "nowhere.invalid": 1}


@pytest.mark.parametrize(
    ("location", "host"),
    [
        (" HTTP://A.org:80/b", "a.org"),
        ("https://a.org", "a.org"),
        ("http://a.org?x://y", "a.org"),
        ("images/a.png", ""),
        ("/a://b", ""),
        ("", ""),
    ],
)
def test_rows_are_sorted_by_the_host_of_their_urls(location, host):
    assert host_of(location) == host


def test_a_picture_that_the_shards_time_ends_says_so(site):
    begun = time.monotonic()
    with on_time_of(ShardTime(0.3)):
        fetch = HttpFetcher(FetchConfig(allow_host=HERE))
        assert fault(fetch, f"{site.root}/dripping") == "failed:deadline"
        assert fault(fetch, f"{site.root}/picture") == "failed:deadline"
    assert time.monotonic() - begun < 3


def test_a_large_body_lies_in_a_file(site):
    with HttpFetcher(ONCE)(f"{site.root}/large") as body:
        assert body.fileno() >= 0  # it has none while it is in memory
        assert body.read() == bytes(IN_MEMORY_BYTES) + b"a"


def test_bodies_that_wait_take_little_memory_each(site):
    fetch = HttpFetcher(replace(ONCE, threads=16, per_host=16))
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(16) as threads:
            bodies = list(threads.map(fetch, [f"{site.root}/huge"] * 16))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for body in bodies:
        assert body.seek(0, os.SEEK_END) == len(site.huge)
        body.close()
    # While it grows in memory a body may have twice its room.
    assert peak_bytes < 16 * 2 * IN_MEMORY_BYTES < 16 * len(site.huge)


def test_a_full_disk_is_no_fault_of_the_server(site, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space"):  # not FetchFault
        HttpFetcher(ONCE)(f"{site.root}/large")


def test_a_server_without_tls_is_tls(site):
    url = site.root.replace("http", "https") + "/picture"
    assert fault(HttpFetcher(ONCE), url) == "failed:tls"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.org/x.jpg", "data:image/png;base64,AAAA", "javascript:1"],
)
def test_only_web_addresses_are_fetched(url):
    assert fault(HttpFetcher(ONCE), url) in ("failed:bad_scheme", "failed:bad_url")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x.jpg",
        "a.org/x.jpg",
        "http:",
        "http://",
        "http:///x.jpg",
        "http://[::1/x.jpg",
        "http://[zz]/x.jpg",
        "http://a.org:0/x.jpg",
        "http://a.org:99999/x.jpg",
        "http://a.org:port/x.jpg",
        "http://a b/x.jpg",
        "http://a..b/x.jpg",
        "http://a\x00b/x.jpg",
        "http://" + "a" * 70 + ".invalid/x.jpg",
        "http://\ud800.invalid/x.jpg",
        "http://\u2100.invalid/x.jpg",
        "http:/127.0.0.1/x.jpg",
        "http:\\\\127.0.0.1\\x.jpg",
        "http://127.0.0.1\\@a.org/x.jpg",
        "http://a.org\\@127.0.0.1/x.jpg",
        "http://127.0.0.1@a.org/x.jpg",
        "http://user:word@127.0.0.1/x.jpg",
        "http://127.0.0.1\t/x.jpg",
        "http://a.org\r\nHost: b/x.jpg",
    ],
)
def test_what_is_no_url_is_said_to_be_none(web, url):
    assert fault(HttpFetcher(ONCE), url) == "failed:bad_url"
    assert not web.attempts


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    prefix=st.sampled_from(["", "http:", "http://[", "https://%", "http://a.invalid:x", "//"]),
    text=st.text(st.characters(exclude_characters="/\\"), max_size=12),
)
def test_any_text_is_fetched_or_a_fault(web, prefix, text):
    assert fault(_fetch_once, prefix + text).startswith("failed:")


def test_the_fetcher_says_who_it_is(site):
    site.agents.clear()
    HttpFetcher(FetchConfig(allow_host=HERE, user_agent="me (me@a.org)"))(f"{site.root}/picture")
    HttpFetcher(FetchConfig(allow_host=HERE, contact="https://a.org/bot"))(f"{site.root}/picture")
    assert site.agents == ["me (me@a.org)", f"{FetchConfig().user_agent} (+https://a.org/bot)"]
    with pytest.raises(ConfigError, match="contact"):
        FetchConfig(contact="me\r\nCookie: a")


def test_a_host_is_asked_by_few_threads_at_once(site):
    fetch = HttpFetcher(replace(ONCE, threads=16, per_host=2))
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(fetch, [f"{site.root}/crowd"] * 16)) == {PICTURE}
    assert site.most_inside == 2


def test_a_wait_for_others_is_no_time_of_a_picture(site):
    fetch = HttpFetcher(replace(QUICK, per_host=1))
    with ThreadPoolExecutor(8) as threads:
        slow = [threads.submit(fault, fetch, f"{site.root}/dripping") for _ in range(2)]
        assert set(threads.map(fetch, [f"{site.root}/crowd"] * 6)) == {PICTURE}
        assert [outcome.result() for outcome in slow] == ["failed:timeout"] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", 0),
        ("total_timeout_s", -1.0),
        ("max_download_bytes", 0),
        ("threads", 0),
        ("per_host", 0),
        ("retries", -1),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_its_value(name, value):
    with pytest.raises(ConfigError, match=f"{name}: {value} is"):
        FetchConfig(**{name: value})


def test_a_picture_may_not_take_longer_than_its_shard():
    FetchConfig(total_timeout_s=30.0, shard_timeout_s=30.0)
    told = r"total_timeout_s: 60 of one picture is more than shard_timeout_s, 30 of"
    with pytest.raises(ConfigError, match=told):
        FetchConfig(shard_timeout_s=30.0)


@pytest.mark.parametrize("host", ["", "http://a.org", "a.org/x", "me@a.org", "a b"])
def test_a_host_to_allow_is_a_name_or_an_address(host):
    with pytest.raises(ConfigError, match="allow_host"):
        FetchConfig(allow_host=(host,))
    FetchConfig(allow_host=("a.org", "10.0.0.1", "::1"))


def test_a_server_may_ask_for_another_time(site, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert HttpFetcher(FetchConfig(allow_host=HERE, retries=1))(f"{site.root}/busy") == PICTURE
    assert slept[0] >= 3


def test_who_opts_out_is_obeyed_unless_told_otherwise(site):
    url = f"{site.root}/tagged"
    assert fault(_fetch_once, url) == "failed:opt_out"
    assert HttpFetcher(replace(ONCE, ignore_opt_out=True))(url) == PICTURE
    assert fault(_fetch_once, f"{site.root}/gone") == "failed:http_410"


def test_servers_are_asked_for_pictures_as_they_are(site):
    HttpFetcher(ONCE)(f"{site.root}/picture")
    assert site.encodings[-1] == "identity"


@pytest.fixture
def folder(tmp_path):
    """A folder with one picture, and a file beside the folder."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.jpg").write_bytes(b"12345")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return root


def test_pictures_are_read_from_below_the_folder(folder):
    fetch = FolderFetcher(folder, max_bytes=5)
    assert fetch("sub/a.jpg") == fetch("./sub//a.jpg") == b"12345"
    assert fault(FolderFetcher(folder, max_bytes=4), "sub/a.jpg") == "failed:too_large"


def test_no_path_leads_out_of_the_folder(folder):
    fetch = FolderFetcher(folder, max_bytes=100)
    outside = folder.parent / "secret.jpg"
    for path in (
        "../secret.jpg",
        "sub/../../secret.jpg",
        "sub/../sub/a.jpg",
        str(outside),
        "/",
        "",
    ):
        assert fault(fetch, path) == "failed:bad_path"


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("b.jpg", "missing_file"),
        ("no/a.jpg", "missing_file"),
        ("sub", "unreadable_file"),
        (".", "unreadable_file"),
        ("sub/a.jpg/b", "unreadable_file"),
        ("a\x00b", "unreadable_file"),
        ("\ud800.jpg", "unreadable_file"),
        ("x" * 300, "unreadable_file"),
    ],
)
def test_a_file_that_cannot_be_read_has_its_word(folder, path, outcome):
    assert fault(FolderFetcher(folder, max_bytes=1 << 20), path) == f"failed:{outcome}"


def test_a_pipe_is_no_picture_and_nobody_waits_for_it(folder):
    os.mkfifo(folder / "pipe.jpg")
    outcomes = []

    def read() -> None:
        try:
            FolderFetcher(folder, max_bytes=100)("pipe.jpg")
        except FetchFault as reason:
            outcomes.append(str(reason))

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(1)
    if reader.is_alive():  # let it go
        os.close(os.open(folder / "pipe.jpg", os.O_RDWR))
        reader.join()
    assert outcomes == ["failed:unreadable_file"]
