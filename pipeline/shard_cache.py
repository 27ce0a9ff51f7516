"""A local copy of shards that lie on an object store, of bounded size, shared by processes.

A copy is named by its content's digest, written aside and renamed, so that whoever sees it sees all
of it, and a killed process leaves nothing but a file that the next one removes.
"""

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, DatasetError
from pipeline.shard import FileEntry
from pipeline.storage import Folder, Locked, clear_errors

_COPY, _ASIDE = ".arrow", ".part"
_CHUNK_BYTES = 8 << 20
_ROOM_LOCK = ".room.lock"
_WAIT_S = 0.1


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where shards of features that are not local are kept, on each machine."""

    cache: str = "~/.cache/viaduct"
    """Folder for copies of shards from object stores; processes of a machine may share it."""

    cache_bytes: int = 64 << 30
    """Bytes of copies in it, at most; the least recently opened ones go. Training by lanes wants
    room for two or three shards a lane. What a process has open takes its space until closed."""

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise ConfigError(f"cache_bytes: {self.cache_bytes} is not positive")

    @property
    def folder(self) -> Folder:
        return Folder.at(self.cache)


def local_copy(config: CacheConfig, remote: Folder, entry: FileEntry) -> str:
    """The name in the cache of a copy of a shard's file, which is fetched unless it is there.

    Another process may evict it before it is opened; it is there again when asked for again. Under
    a map it may be evicted too: Linux keeps what is mapped.

    Args:
        config: of the cache.
        remote: the dataset's folder.
        entry: the file, as its record tells it.

    Raises:
        ConfigError: the file has no room in the cache, or the cache cannot be written.
        DatasetError: what is fetched is not what its record says.
    """
    home, name = config.folder, f"{entry.digest}{_COPY}"
    if not _opened_now(home, name, entry):
        with home.locked(_lock_of(name)):  # of several processes one fetches
            if not _opened_now(home, name, entry):
                _fetch(config, remote, entry, name)
    return name


def _opened_now(home: Folder, name: str, entry: FileEntry) -> bool:
    """Whether the copy is there; if so, it is the most recently opened one from now on."""
    try:
        os.utime(f"{home.path}/{name}")
    except FileNotFoundError:
        return False
    return home.size(name) == entry.bytes


def _fetch(config: CacheConfig, remote: Folder, entry: FileEntry, name: str) -> None:
    home = config.folder
    aside = Path(home.path, f"{entry.digest}{_ASIDE}")
    with clear_errors(home):
        while not _reserved(config, entry, aside):
            time.sleep(_WAIT_S)  # others fill the room with what they fetch just now
        try:
            sha = hashlib.sha256()
            with (
                remote.fs.open_input_stream(f"{remote.path}/{entry.file}") as stream,
                open(aside, "r+b") as file,
            ):
                while chunk := stream.read(_CHUNK_BYTES):
                    sha.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if sha.hexdigest() != entry.digest:
                raise DatasetError(f"{remote}/{entry.file}: is not what its record says")
            with home.locked(_ROOM_LOCK):  # or whoever counts just now would see neither name
                os.replace(aside, f"{home.path}/{name}")
        finally:
            aside.unlink(missing_ok=True)


def _reserved(config: CacheConfig, entry: FileEntry, aside: Path) -> bool:
    """Make room for a file and take it, by an empty file of its size; False where there is none.

    Raises:
        ConfigError: there can never be.
    """
    if entry.bytes > config.cache_bytes:
        raise ConfigError(
            f"cache_bytes: {config.cache_bytes} has no room for {entry.file} of {entry.bytes} bytes"
        )
    home = config.folder
    with home.locked(_ROOM_LOCK):
        files = [path for path in Path(home.path).iterdir() if path.suffix in (_COPY, _ASIDE)]
        present: dict[Path, os.stat_result] = {}
        for path in files:
            if path.suffix == _ASIDE:
                _remove_if_left_behind(home, path, aside)
            with contextlib.suppress(FileNotFoundError):  # left behind, or its fetch just failed
                present[path] = path.stat()
        used = sum(stat.st_size for stat in present.values())
        copies = sorted((s.st_mtime_ns, p) for p, s in present.items() if p.suffix == _COPY)
        for _, path in copies:
            if used + entry.bytes <= config.cache_bytes:
                break
            used -= present[path].st_size
            path.unlink()
        if used + entry.bytes > config.cache_bytes:
            return False
        with open(aside, "wb") as file:
            file.truncate(entry.bytes)
        return True


def _remove_if_left_behind(home: Folder, path: Path, aside: Path) -> None:
    """Remove what a killed process began to fetch: its lock is free, or the one of `aside`."""
    lock = _lock_of(path.name)
    if lock == _lock_of(aside.name):
        path.unlink()
    elif home.note_of_lock(lock) is None:
        # Without waiting: whoever fetches holds its lock while it waits for the room's.
        with contextlib.suppress(Locked), home.locked(lock, note="being fetched"):
            path.unlink(missing_ok=True)


def _lock_of(name: str) -> str:
    """A lock for a file; 256 of them serve all, for a lock file can never be removed safely."""
    return f".{name[:2]}.lock"
