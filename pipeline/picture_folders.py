"""Folders of pictures, each with its captions in a text file of the same name."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, Fetcher, FolderFetcher
from pipeline.source_rows import rows_digest, source_rows
from pipeline.uids import uid_of

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


class FolderSource:
    """A folder tree of pictures: `cat.jpg` has its captions in `cat.txt`, a caption a line."""

    locations = "file"
    extra = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES
        )
        if not self._files:
            raise ConfigError(f"{folder}: holds neither tables nor pictures")

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        return folder_fetcher(self.folder)

    def digest(self) -> str:
        return rows_digest(self.tables())

    def tables(self) -> Iterator[pa.Table]:
        for start in range(0, len(self._files), 1024):
            files = self._files[start : start + 1024]
            # A name that is no UTF-8 is replaced: such a picture ends as failed, not the job.
            names = [os.fsencode(path.relative_to(self.folder).as_posix()) for path in files]
            paths = [name.decode(errors="replace") for name in names]
            yield source_rows(paths, [_captions_beside(path) for path in files], uid_of)


def folder_fetcher(folder: Path) -> Callable[[FetchConfig], Fetcher]:
    """What makes the fetcher of files below a folder."""
    return partial(_fetcher, folder)


def _fetcher(folder: Path, config: FetchConfig) -> Fetcher:
    return FolderFetcher(folder, config.max_download_bytes)


def _captions_beside(picture: Path) -> list[str]:
    text = picture.with_suffix(".txt")
    if not text.is_file():
        return []
    lines = text.read_text(encoding="utf-8-sig", errors="replace").rstrip("\n")
    return lines.split("\n") if lines else []
