"""Fetching: the one place where a picture's bytes enter a worker.

Whatever must be checked about a URL, an answer or a body is checked here; which addresses may be
reached is `pipeline/guard.py`'s, and until when `pipeline/deadlines.py`'s.
"""

import errno
import http.client
import logging
import random
import re
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Url, parse_url

from pipeline.bodies import gathered
from pipeline.deadlines import deadline, postpone, remaining_s, shard_remaining_s
from pipeline.errors import ConfigError
from pipeline.guard import BlockedAddress, GuardedPools, plain_name
from pipeline.manners import AGENT, opts_out, retry_after_s
from pipeline.proxies import Proxies, proxies_of_environment
from pipeline.turns import Turns

SHARD_DEADLINE = "failed:deadline"
"""What a row is whose shard's time was over before it was fetched."""

_CHUNK_BYTES = 1 << 16
_FILE_CHUNK_BYTES = 1 << 20
_MAX_REDIRECTS = 5
_FIRST_WAIT_S = 0.2
_NO_ANSWER = ("dns", "refused", "timeout", "connection", "proxy", "truncated")
_TRY_AGAIN = {*_NO_ANSWER, "http_429", "http_500", "http_502", "http_503", "http_504"}

_AUTHORITY = re.compile(r"[^\s\\@\x00-\x20\x7f]+")
"""A host with its port. What else can stand there (`a\\@b`, `user@b`) is read in several ways."""

_HOST = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://([^\s/?#:]*)")


class FetchFault(Exception):
    """Why a picture did not arrive; its text is the outcome, as the ledger counts it."""


class _Fault(Exception):
    """A fault of one try: the word for it, and after how long the server wants to be asked.

    `lasts` says that another try cannot help though the word may pass.
    """

    def __init__(self, word: str, after_s: float | None = None, *, lasts: bool = False) -> None:
        super().__init__(word)
        self.word = word
        self.after_s = after_s
        self.lasts = lasts


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How pictures are fetched."""

    timeout_s: float = 10.0
    """Longest wait for a connection or for the next bytes, in seconds."""

    total_timeout_s: float = 60.0
    """Longest time for one picture, in seconds, from the first connection to the last retry."""

    shard_timeout_s: float = 600.0
    """Longest time that a shard may keep its worker waiting for pictures, in seconds; what has not
    come by then is `failed:deadline`. Time in which the worker decodes does not count. It is at
    least `total_timeout_s`, and should be well below `deadline_s`, after which the worker is killed
    and the shard begun again."""

    max_download_bytes: int = 64 << 20
    """Largest body read, in bytes, as sent and as unpacked."""

    retries: int = 2
    """Further tries after a fault that may pass (no connection, or status 429, 500, 502-504).

    Retry-After is obeyed; a server that wants to be left alone for longer than `timeout_s` is."""

    threads: int = 32
    """Fetches at once in a worker."""

    per_host: int = 8
    """Requests to one host at once in a worker."""

    user_agent: str = f"{AGENT}/0.1 (dataset ingestion)"
    """How the fetch names itself to servers."""

    contact: str = ""
    """An address or URL where those who run servers reach you; it is told to them."""

    allow_host: tuple[str, ...] = ()
    """Hosts (names or addresses, as URLs have them) that may be reached whatever their addresses
    are. All others must be on the open web: loopback, private and the like are refused."""

    proxy_from_environment: bool = False
    """Send requests through the proxies that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name in the
    environment of each worker. A proxy has the last word on where a name leads: a host that
    resolves in the worker is still checked as without one, but the proxy resolves it again."""

    ignore_opt_out: bool = False
    """Keep pictures whose servers forbid it (X-Robots-Tag: noai, noimageai, noindex, noimageindex;
    TDM-Reservation: 1)."""

    def __post_init__(self) -> None:
        times = ("timeout_s", "total_timeout_s", "shard_timeout_s")
        for name in (*times, "max_download_bytes", "threads", "per_host"):
            if not getattr(self, name) > 0:  # nan is not either
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        if self.total_timeout_s > self.shard_timeout_s:
            raise ConfigError(
                f"total_timeout_s: {self.total_timeout_s:g} of one picture is more than "
                f"shard_timeout_s, {self.shard_timeout_s:g} of a whole shard"
            )
        if self.proxy_from_environment:
            proxies_of_environment()  # it raises
        if self.retries < 0:
            raise ConfigError(f"retries: {self.retries} is negative")
        for name in ("user_agent", "contact"):
            if not re.fullmatch(r"[ -~]*", getattr(self, name)):
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not printable ASCII")
        for host in self.allow_host:
            if not re.fullmatch(r"[\w.-]+|[0-9a-fA-F:.]+", host):
                raise ConfigError(f"allow_host: {host!r} is no host's name or address")


class Fetcher(Protocol):
    """Gets the bytes behind a location. Used by many threads at once."""

    def expect(self, locations: Sequence[str]) -> None:
        """Hear what a shard will ask for from now on, each once and nearly in this order."""
        return None  # most have no use for it

    def __call__(self, location: str) -> bytes | IO[bytes]:
        """The bytes, or the caller's own file of them, at its begin.

        Raises:
            FetchFault: the outcome.
            OSError: this machine has no room for them.
        """
        ...


class HttpFetcher(Fetcher):
    """Fetches http and https URLs of the open web over kept connections."""

    def __init__(self, config: FetchConfig) -> None:
        # It warns of every odd header with a traceback, in the words of whoever sent it.
        logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
        agent = config.user_agent + (f" (+{config.contact})" if config.contact else "")
        self._config = config
        self._turns = Turns(config.per_host)
        self._headers = {"User-Agent": agent, "Accept-Encoding": "identity"}
        allow_host = frozenset(plain_name(host) for host in config.allow_host)
        timeout = urllib3.Timeout(connect=config.timeout_s, read=config.timeout_s)
        options = {"num_pools": 256, "timeout": timeout}
        self._pools = GuardedPools(allow_host, maxsize=config.per_host, **options)
        self._proxies = None
        if config.proxy_from_environment:  # all hosts of http are one pool, to the proxy
            self._proxies = Proxies(allow_host, maxsize=config.threads, **options)

    def __call__(self, location: str) -> bytes | IO[bytes]:
        with deadline(self._config.total_timeout_s):
            wait_s = _FIRST_WAIT_S
            for tries_left in range(self._config.retries, -1, -1):
                try:
                    return self._follow(location)
                except _Fault as fault:
                    # A little may be left: the shard's time stood still while the socket's ran.
                    if fault.word == "timeout" and shard_remaining_s() < 2 * wait_s:
                        raise FetchFault(SHARD_DEADLINE) from None
                    sleep_s = self._wait(fault, wait_s)
                    if not tries_left or sleep_s is None:
                        raise FetchFault(f"failed:{fault.word}") from None
                time.sleep(sleep_s)
                wait_s *= 2
        raise AssertionError("the last try returns or raises")

    def _wait(self, fault: _Fault, wait_s: float) -> float | None:
        """Seconds until another try; None where there is none worth it."""
        if fault.word not in _TRY_AGAIN or fault.lasts:
            return None
        sleep_s = wait_s * (1 + random.random())
        if fault.after_s is not None:
            sleep_s = max(sleep_s, fault.after_s)
            if fault.after_s > self._config.timeout_s:  # no server may park a thread for longer
                return None
        return sleep_s if sleep_s < remaining_s() else None

    def _follow(self, location: str) -> bytes | IO[bytes]:
        """One try: the body at the end of all redirects. Raises _Fault."""
        seen: set[str] = set()
        while len(seen) <= _MAX_REDIRECTS:
            url = _parse(location)
            if url.url in seen:
                break
            seen.add(url.url)
            try:
                with self._turns.turn(url.host or "") as waited_s:
                    postpone(waited_s)  # others took that time, and this picture still has its own
                    answer = self._ask(url)
            except BlockedAddress:
                raise _Fault("blocked_address") from None
            except (HTTPError, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    raise
                raise _Fault(_fault_class(error), lasts=_is_unknown_name(error)) from None
            if not isinstance(answer, str):
                return answer
            location = answer
        raise _Fault("redirects")

    def _ask(self, url: Url) -> bytes | IO[bytes] | str:
        """The body of one answer, or where it leads to."""
        proxied = self._proxies and self._proxies.pools(url)
        pool = (proxied or self._pools).connection_from_host(url.host, url.port, url.scheme)
        whole = proxied and url.scheme == "http"  # https has a tunnel
        response = pool.urlopen(
            "GET",
            url._replace(fragment=None).url if whole else url.request_uri,
            headers=self._headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
        )
        try:
            obeyed = response.status < 400 and not self._config.ignore_opt_out
            if obeyed and opts_out(response):
                raise _Fault("opt_out")
            if target := response.get_redirect_location():
                response.close()
                return urljoin(url.url, target)
            if response.status != 200:
                raise _Fault(f"http_{response.status}", retry_after_s(response))
            body = self._body(response)
        except BaseException:
            response.close()  # what is left unread would spoil the connection for the next fetch
            raise
        response.release_conn()
        return body

    def _body(self, response: urllib3.BaseHTTPResponse) -> bytes | IO[bytes]:
        num_bytes = response.length_remaining or 0
        if num_bytes > self._config.max_download_bytes:
            raise _Fault("too_large")
        return gathered(self._chunks(response), num_bytes)

    def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        num_bytes = 0
        while chunk := response.read1(_CHUNK_BYTES):  # what has come, be it a single byte
            num_bytes += len(chunk)
            if num_bytes > self._config.max_download_bytes:
                raise _Fault("too_large")
            if remaining_s() <= 0:  # unpacking takes its time without any socket
                raise _Fault("timeout")
            yield chunk


@dataclass(frozen=True)
class FolderFetcher(Fetcher):
    """Reads pictures from below a folder and from nowhere else."""

    folder: Path
    max_bytes: int

    def __call__(self, location: str) -> bytes | IO[bytes]:
        relative = PurePosixPath(location)
        if not location or relative.is_absolute() or ".." in relative.parts:
            raise FetchFault("failed:bad_path")
        path = self.folder / relative
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a named pipe would never end
                raise FetchFault("failed:unreadable_file")
            if status.st_size > self.max_bytes:
                raise FetchFault("failed:too_large")
            file = path.open("rb")
        except FileNotFoundError:
            raise FetchFault("failed:missing_file") from None
        except (OSError, ValueError):
            raise FetchFault("failed:unreadable_file") from None
        with file:
            return gathered(_chunks_of(file), status.st_size)


def _chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    try:
        while chunk := file.read(_FILE_CHUNK_BYTES):
            yield chunk
    except OSError:
        raise FetchFault("failed:unreadable_file") from None


def host_of(location: str) -> str:
    """The host as a URL's text has it, empty where there is none.

    Says in what order rows are fetched and no more; what is connected to is read by `_parse`.
    """
    found = _HOST.match(location)
    return found[1].lower() if found else ""


def _parse(location: str) -> Url:
    """The one reading of a URL: what is checked here is what is connected to. Raises _Fault."""
    location = location.strip()
    scheme, colon, rest = location.partition(":")
    if not colon or not scheme.isascii() or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise _Fault("bad_url")
    if scheme.lower() not in ("http", "https"):
        raise _Fault("bad_scheme")
    authority = re.split(r"[/?#]", rest[2:], maxsplit=1)[0]
    if not rest.startswith("//") or not _AUTHORITY.fullmatch(authority):
        raise _Fault("bad_url")
    try:
        url = parse_url(location)
    except (LocationParseError, ValueError):
        raise _Fault("bad_url") from None
    if not url.host or url.port == 0:
        raise _Fault("bad_url")
    return url


def _fault_class(error: BaseException) -> str:
    """One word for what went wrong, whatever urllib3 wrapped it in."""
    if isinstance(error, ProtocolError) and isinstance(error.args[-1], _CUT_SHORT):
        return "truncated"
    if isinstance(error, ProxyError) and _fault_class(error.original_error) == "timeout":
        return "timeout"
    for kinds, word in _FAULT_CLASSES:
        if isinstance(error, kinds):
            return word
    return "connection"


def _is_unknown_name(error: BaseException) -> bool:
    """Whether name servers say that there is no such name; otherwise they did not answer."""
    cause = error.__cause__
    return isinstance(cause, socket.gaierror) and cause.errno in _UNKNOWN_NAME


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE)
_UNKNOWN_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)
_CUT_SHORT = (IncompleteRead, http.client.IncompleteRead)

_FAULT_CLASSES: list[tuple[tuple[type[BaseException], ...], str]] = [
    ((NameResolutionError,), "dns"),
    ((ProxyError,), "proxy"),
    # urllib3 makes a refused connection a kind of connect timeout, so it is asked for first.
    ((NewConnectionError, ConnectionRefusedError), "refused"),
    ((ConnectTimeoutError, ReadTimeoutError, TimeoutError), "timeout"),
    ((SSLError,), "tls"),
    (_CUT_SHORT, "truncated"),
    ((LocationParseError, ValueError), "bad_url"),
    ((ProtocolError, ConnectionError), "connection"),
]
