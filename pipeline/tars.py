"""WebDataset tars: a picture, and its caption in a member of the same key, `.txt` or `.json`.

Nothing is extracted. A member's name is a key in an index of offsets and never a path.
"""

import io
import json
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from pipeline.bodies import gathered
from pipeline.errors import ConfigError, first_line
from pipeline.extra import extra_column, text_fields
from pipeline.fetch import FetchConfig, Fetcher, FetchFault
from pipeline.picture_folders import PICTURE_SUFFIXES
from pipeline.source_files import SourceFile, relative_names
from pipeline.source_rows import caption_list, rows_digest, source_rows
from pipeline.uids import uid_of

_ROWS = 1024
"""Pictures a table."""
_TEXT_BYTES = 1 << 24
"""Of a caption's member, or of an extended header, at most."""
_CHUNK_BYTES = 1 << 20
"""Of a picture that are read at once."""
_OPEN_TARS = 4
"""Whose indexes a worker keeps; its rows come nearly in order."""


def is_tar(file: SourceFile) -> bool:
    """Whether a file's name says that it is a tar; compressed ones have no offsets to read at."""
    return file.format == ".tar" and not file.compression


@dataclass(frozen=True)
class Member:
    """Where a member's content lies in its tar, in bytes."""

    offset: int
    size: int


class TarSource:
    """A row for each picture in the tars, `00000.tar/key.jpg`, in their order.

    The key is the member's name up to the first dot after its folders. A caption is the whole of
    `key.txt`; where there is none, it is that of `key.json`, a text or a list.
    """

    locations = "member"

    def __init__(
        self, files: list[SourceFile], keep: tuple[str, ...] = (), caption_field: str | None = None
    ) -> None:
        """Name the tars; nothing is read yet.

        Args:
            files: in the order in which they are read, at least one.
            keep: further fields of the JSON to carry along.
            caption_field: of the JSON, then read instead of the text; by default `caption` or
                `captions`.
        """
        self.files = files
        self.extra = text_fields(keep)
        self._caption_field = caption_field

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        return partial(TarFetcher, self.files)

    def digest(self) -> str:
        return rows_digest(self.tables())

    def tables(self) -> Iterator[pa.Table]:
        """See `sources.Source`. Raises ConfigError where a tar or a caption in it is broken."""
        missing = {field.name for field in self.extra or ()}
        for file, name in zip(self.files, relative_names(self.files), strict=True):
            try:
                with file.random_access() as stored:
                    for table, fields in self._tables_of(stored, name):
                        missing -= fields
                        yield table
            except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
                raise ConfigError(f"{file}: cannot be read: {first_line(error)}") from error
        if missing:
            raise ConfigError(f"keep: no JSON in the tars has the field {min(missing)!r}")

    def _tables_of(
        self, stored: pa.NativeFile, name: str
    ) -> Iterator[tuple[pa.Table, frozenset[str]]]:
        """Tables of one tar, and the names of the fields that their JSON had."""
        members = read_members(stored)
        beside = {_key(n): m for n, m in members.items() if _key(n)[1] in ("txt", "json")}
        pictures = filter(is_picture, members)
        while names := list(islice(pictures, _ROWS)):
            keys = [_key(picture)[0] for picture in names]
            said = [_json_of(stored, beside.get((key, "json"))) for key in keys]
            captions = [
                self._captions(stored, beside.get((key, "txt")), fields)
                for key, fields in zip(keys, said, strict=True)
            ]
            extra = None
            if self.extra is not None:
                cells = {f.name: [fields.get(f.name) for fields in said] for f in self.extra}
                extra = extra_column(cells, self.extra)
            places = [f"{name}/{picture}" for picture in names]
            yield source_rows(places, captions, uid_of, extra), frozenset().union(*said)

    def _captions(
        self, stored: pa.NativeFile, text: Member | None, fields: Mapping[str, Any]
    ) -> list[str]:
        if self._caption_field:
            return caption_list(fields.get(self._caption_field))
        if text:
            return [_content(stored, text).decode("utf-8-sig", errors="replace").rstrip("\r\n")]
        return caption_list(fields.get("caption", fields.get("captions")))


class TarFetcher(Fetcher):
    """Fetches a member, `00000.tar/key.jpg`, by its offset; indexes a tar when it is first met."""

    def __init__(self, files: Sequence[SourceFile], config: FetchConfig) -> None:
        self._files = dict(zip(relative_names(files), files, strict=True))
        self._max_bytes = config.max_download_bytes
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[pa.NativeFile, dict[str, Member]]] = OrderedDict()

    def __call__(self, location: str) -> bytes | IO[bytes]:
        name = next((name for name in _beginnings(location) if name in self._files), None)
        if name is None:
            raise FetchFault("failed:bad_path")
        try:
            with self._lock:
                stored, members = self._opened(name)
        except (tarfile.TarError, OSError, ValueError):
            raise FetchFault("failed:unreadable_file") from None
        member = members.get(location[len(name) + 1 :])
        if member is None:
            raise FetchFault("failed:missing_file")
        if member.size > self._max_bytes:
            raise FetchFault("failed:too_large")
        return gathered(_chunks(stored, member), member.size)

    def _opened(self, name: str) -> tuple[pa.NativeFile, dict[str, Member]]:
        if name not in self._open:
            stored = self._files[name].random_access()
            members = {n: m for n, m in read_members(stored).items() if is_picture(n)}
            self._open[name] = stored, members
            if len(self._open) > _OPEN_TARS:
                self._open.popitem(last=False)  # closed when the last thread has read from it
        return self._open[name]


def read_members(stored: pa.NativeFile) -> dict[str, Member]:
    """The plain files in a tar, by name; of one that is there twice the last, as tar has it.

    What is no UTF-8 in a name is replaced.

    Raises:
        TarError, OSError: it is no tar, or it is damaged or cut short.
    """
    members: dict[str, Member] = {}
    headers = _Headers(stored)
    with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as tar:
        end = -1
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if info.size < 0 or tar.offset <= end:
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            end = tar.offset
            if info.isreg() and not info.issparse():
                name = info.name.encode(errors="surrogateescape").decode(errors="replace")
                members[name] = Member(info.offset_data, info.size)
        # tarfile takes a header that it cannot read for the end, and so it does the file's end.
        headers.seek(tar.offset)
        if headers.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut short at byte {tar.offset}")
    return members


class _Headers(io.BufferedReader):
    """What tarfile reads of a tar: its headers, and never much at once."""

    def __init__(self, stored: pa.NativeFile) -> None:
        stored.seek(0)
        super().__init__(stored, 1 << 16)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)

    def close(self) -> None:
        """The file is its owner's to close."""


def _chunks(stored: pa.NativeFile, member: Member) -> Iterator[bytes]:
    end = member.offset + member.size
    for start in range(member.offset, end, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, end - start)
        try:
            chunk = stored.read_at(size, start)
        except (OSError, ValueError):
            raise FetchFault("failed:unreadable_file") from None
        if len(chunk) < size:
            raise FetchFault("failed:truncated")
        yield chunk


def _content(stored: pa.NativeFile, member: Member) -> bytes:
    if member.size > _TEXT_BYTES:
        raise ValueError(f"a caption of {member.size:,} bytes at byte {member.offset}")
    return stored.read_at(member.size, member.offset)


def _json_of(stored: pa.NativeFile, member: Member | None) -> dict[str, Any]:
    if member is None:
        return {}
    try:
        fields = json.loads(_content(stored, member).decode("utf-8-sig", errors="replace"))
    except ValueError as error:
        raise ValueError(f"JSON at byte {member.offset}: {first_line(error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"JSON at byte {member.offset} is no object")
    return fields


def _beginnings(location: str) -> Iterator[str]:
    """All of a path's beginnings that end before a slash, the shortest first."""
    return (location[:place] for place, letter in enumerate(location) if letter == "/")


def is_picture(name: str) -> bool:
    """Whether a member's name says that it is a picture."""
    return f".{_key(name)[1]}" in PICTURE_SUFFIXES


def _key(name: str) -> tuple[str, str]:
    """Key and ending, in lower case, of a member; an empty key of what is hidden."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), ending.lower()
