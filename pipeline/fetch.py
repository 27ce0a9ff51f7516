"""Fetching: the one place where a picture's bytes enter a worker.

Whatever must be checked about an address, a connection or a body is checked here.
"""

import stat
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    LocationParseError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    ResponseError,
    SSLError,
)

from pipeline.errors import ConfigError

_CHUNK_BYTES = 1 << 16
_TRY_AGAIN = (429, 500, 502, 503, 504)


class FetchFault(Exception):
    """Why a picture did not arrive; its text is the outcome, as the ledger counts it."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How pictures are fetched."""

    timeout_s: float = 10.0
    """Longest wait for a connection or for the next bytes, in seconds."""

    total_timeout_s: float = 60.0
    """Longest time for the body of one answer, in seconds."""

    max_download_bytes: int = 64 << 20
    """Largest body read, in bytes."""

    retries: int = 2
    """Further tries after a fault that may pass (no connection, or status 429, 500, 502-504)."""

    threads: int = 32
    """Fetches at once in a worker."""

    user_agent: str = "viaduct/0.1 (dataset ingestion)"
    """How the fetch names itself to servers; add a way to reach you."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "total_timeout_s", "max_download_bytes", "threads"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        if self.retries < 0:
            raise ConfigError(f"retries: {self.retries} is negative")


class Fetcher(Protocol):
    """Gets the bytes behind a location. Used by many threads at once."""

    def __call__(self, location: str) -> bytes:
        """Raises FetchFault with the outcome."""
        ...


class HttpFetcher:
    """Fetches http and https URLs over kept connections."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._pool = urllib3.PoolManager(
            num_pools=256,
            maxsize=config.threads,
            headers={"User-Agent": config.user_agent},
            timeout=urllib3.Timeout(connect=config.timeout_s, read=config.timeout_s),
            retries=urllib3.Retry(
                total=config.retries + 5,
                connect=config.retries,
                read=config.retries,
                status=config.retries,
                other=0,
                redirect=5,
                status_forcelist=_TRY_AGAIN,
                backoff_factor=0.2,
                backoff_jitter=0.2,
                retry_after_max=int(config.timeout_s),  # no server may park a thread for longer
                raise_on_status=False,
            ),
        )

    def __call__(self, location: str) -> bytes:
        location = location.strip()
        _check_url(location)
        try:
            return self._get(location)
        except (HTTPError, OSError, ValueError) as error:
            raise FetchFault(f"failed:{_fault_class(error)}") from None

    def _get(self, url: str) -> bytes:
        response = self._pool.request("GET", url, preload_content=False)
        try:
            if response.status != 200:
                raise FetchFault(f"failed:http_{response.status}")
            body = self._body(response)
        except BaseException:
            response.close()  # what is left unread would spoil the connection for the next fetch
            raise
        response.release_conn()
        return body

    def _body(self, response: urllib3.BaseHTTPResponse) -> bytes:
        deadline = time.monotonic() + self._config.total_timeout_s
        body = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):  # what has come, be it a single byte
            body += chunk
            if len(body) > self._config.max_download_bytes:
                raise FetchFault("failed:too_large")
            if time.monotonic() > deadline:
                raise FetchFault("failed:timeout")
        return bytes(body)


@dataclass(frozen=True)
class FolderFetcher:
    """Reads pictures from below a folder and from nowhere else."""

    folder: Path
    max_bytes: int

    def __call__(self, location: str) -> bytes:
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
            return path.read_bytes()
        except FileNotFoundError:
            raise FetchFault("failed:missing_file") from None
        except (OSError, ValueError):
            raise FetchFault("failed:unreadable_file") from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url.strip())
        scheme = parts.scheme.lower()
        complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise FetchFault("failed:bad_url") from None
    if scheme and scheme not in ("http", "https"):
        raise FetchFault("failed:bad_scheme")
    if not scheme or not complete:
        raise FetchFault("failed:bad_url")


def _fault_class(error: BaseException) -> str:
    """One word for what went wrong, whatever urllib3 wrapped it in."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return _fault_class(error.reason)
    if isinstance(error, ProtocolError) and isinstance(error.args[-1], IncompleteRead):
        return "truncated"
    for kinds, word in _FAULT_CLASSES:
        if isinstance(error, kinds):
            return word
    return "connection"


_FAULT_CLASSES: list[tuple[tuple[type[BaseException], ...], str]] = [
    ((NameResolutionError,), "dns"),
    # urllib3 makes a refused connection a kind of connect timeout, so it is asked for first.
    ((NewConnectionError, ConnectionRefusedError), "refused"),
    ((ConnectTimeoutError, ReadTimeoutError, TimeoutError), "timeout"),
    ((SSLError,), "tls"),
    ((IncompleteRead,), "truncated"),
    ((ResponseError,), "redirects"),
    ((LocationParseError, ValueError), "bad_url"),
    ((ProtocolError, ConnectionError), "connection"),
]
