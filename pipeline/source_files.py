"""Which files a location names, and what they say: their bytes, uncompressed.

A location is a path or a URI (`s3://`, `gs://`, `file://`); its parts may hold wildcards.
"""

import glob
import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import ConfigError, first_line
from pipeline.storage import Folder

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed files, and what Arrow calls the compression."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, on one of pyarrow's filesystems."""

    folder: Folder
    """Where it lies."""
    name: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def ending(self) -> str:
        """The last ending of the name: `.gz` of `a.csv.gz`."""
        return posixpath.splitext(self.name)[1]

    @property
    def compression(self) -> str | None:
        """How the file is compressed, in Arrow's words, or None."""
        return COMPRESSIONS.get(self.ending)

    @property
    def format(self) -> str:
        """The ending that says what the content is: `.csv` of `a.csv` and of `a.csv.gz`."""
        if self.compression:
            return posixpath.splitext(self.name.removesuffix(self.ending))[1]
        return self.ending

    def stream(self) -> pa.NativeFile:
        """The content from its beginning, uncompressed."""
        path = f"{self.folder.path}/{self.name}"
        return self.folder.fs.open_input_stream(path, compression=self.compression)

    def random_access(self) -> pa.NativeFile:
        """The bytes as they are stored, anywhere in them."""
        return self.folder.fs.open_input_file(f"{self.folder.path}/{self.name}")

    def mapped(self) -> pa.NativeFile:
        """The same, mapped into memory where the file is local."""
        if self.folder.is_local:
            return pa.memory_map(f"{self.folder.path}/{self.name}")
        return self.random_access()

    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal: the same however it is compressed.

        Raises:
            ConfigError: it cannot be read.
        """
        sha = hashlib.sha256()
        try:
            with self.stream() as stream:
                while chunk := stream.read(1 << 20):
                    sha.update(chunk)
        except OSError as error:
            raise ConfigError(f"{self}: cannot be read: {first_line(error)}") from error
        return sha.hexdigest()


def find(location: str) -> Folder | list[SourceFile]:
    """The folder at a location, or else the files there, sorted by path.

    Wildcards are `*` and `[...]`, of a local path `?` too; none of them stands for a slash or
    begins a hidden file. A local path that is there as it is written has no wildcards.

    Raises:
        ConfigError: there is nothing, or it cannot be looked at.
    """
    try:
        if "://" in location and re.search(r"[*\[]", location.partition("?")[0]):
            return _matching_remote(location)
        place = Folder.at(location)
        kind = place.fs.get_file_info(place.path).type
        if kind == pafs.FileType.NotFound:
            return _matching(location, place)
    except OSError as error:
        raise ConfigError(f"{location}: cannot be looked at: {first_line(error)}") from error
    return place if kind == pafs.FileType.Directory else [_file(place.fs, place.path)]


def files_in(folder: Folder) -> list[SourceFile]:
    """The files directly in a folder but the hidden ones, sorted by name."""
    if folder.is_local:  # pyarrow lists no names that are no UTF-8; a picture may have one
        names = sorted(entry.name for entry in os.scandir(folder.path) if entry.is_file())
    else:
        names = folder.files()
    return [SourceFile(folder, name) for name in names if not name.startswith(".")]


def own_folder(files: list[SourceFile]) -> Path:
    """The folder in which files lie, for the pictures that they list.

    Raises:
        ConfigError: it is not one local folder.
    """
    folders = {str(file.folder) for file in files}
    if len(folders) > 1 or not files[0].folder.is_local:
        why = "so do others in another folder" if len(folders) > 1 else "lies in no local folder"
        raise ConfigError(f"{files[0]}: lists files, and {why}: a picture_folder is needed")
    return Path(folders.pop())


def relative_names(files: Sequence[SourceFile]) -> list[str]:
    """Each file's path below the deepest folder that all of them are in, its parts with slashes."""
    folders = [file.folder.path for file in files]
    common = posixpath.commonpath(folders)
    return [
        posixpath.relpath(f"{folder}/{file.name}", common)
        for folder, file in zip(folders, files, strict=True)
    ]


def _file(fs: pafs.FileSystem, path: str) -> SourceFile:
    parent, name = posixpath.split(path)
    return SourceFile(Folder(fs, parent), name)


def _matching(location: str, place: Folder) -> list[SourceFile]:
    """Files that match what was taken for a path and is not there."""
    if not (place.is_local and glob.has_magic(place.path)):
        raise ConfigError(f"{location}: no such file or folder")
    found = sorted(path for path in glob.glob(place.path) if os.path.isfile(path))
    if not found:
        raise ConfigError(f"{location}: no file matches")
    return [_file(place.fs, path) for path in found]


def _matching_remote(location: str) -> list[SourceFile]:
    """Files that match a URI with wildcards, below its last part that has none."""
    path, mark, options = location.partition("?")  # the options are the filesystem's
    parts = path.split("/")
    fixed = list(takewhile(lambda part: not re.search(r"[*\[]", part), parts))
    wild = parts[len(fixed) :]
    base = Folder.at("/".join(fixed) + mark + options)
    selector = pafs.FileSelector(base.path, allow_not_found=True, recursive=len(wild) > 1)
    found = [
        info.path
        for info in base.fs.get_file_info(selector)
        if info.type == pafs.FileType.File
        and _matches(info.path[len(base.path) :].strip("/").split("/"), wild)
    ]
    if not found:
        raise ConfigError(f"{location}: no file matches")
    return [_file(base.fs, path) for path in sorted(found)]


def _matches(parts: list[str], wild: list[str]) -> bool:
    if len(parts) != len(wild) or any(part.startswith(".") for part in parts):
        return False
    return all(map(fnmatchcase, parts, wild))
