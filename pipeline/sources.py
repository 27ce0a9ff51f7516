"""Sources of pairs: tables of URLs, and folders of pictures.

A source yields Arrow tables of (location, captions) in a fixed order, of bounded size, so that
memory does not grow with it. It knows its digest, by which a job that goes on sees that the source
is still the same.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import ConfigError, first_line
from pipeline.schemas import SOURCE
from pipeline.uids import uid_of, uid_of_url

_BLOCK_BYTES = 1 << 24
_LINES_FOR_NAMES = 100
"""Lines of a jsonl that are read to learn its columns; a null column may be left out in some."""
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """Names of the columns of a table."""

    url_column: str = "url"
    """Column with the picture's URL; empty where the file column is to be used."""

    file_column: str = "file"
    """Column with the picture's path in the folder, used instead where there is no URL."""

    caption_column: str | None = None
    """Column with the caption, or a list of captions; by default `caption` or `captions`,
    whichever is there."""


class Source(Protocol):
    """Pairs in a fixed order, not fetched yet."""

    @property
    def folder(self) -> Path | None:
        """Where the pictures lie; None if they have URLs."""

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what the source says: not of the pictures."""
        ...

    def tables(self) -> Iterator[pa.Table]:
        """Tables of `schemas.SOURCE`, of any size, in order."""
        ...


def open_source(location: str, columns: SourceColumns) -> Source:
    """Find out what kind of source this is.

    Args:
        location: a table (.parquet, .csv, .tsv, .jsonl), or a folder that holds one .jsonl (of
            several, `pairs.jsonl`), or pictures with captions beside them (`cat.jpg` and
            `cat.txt`, a caption a line).

    Raises:
        ConfigError: there is no such file, it is of another kind, or it lacks a column.
    """
    path = Path(os.path.expanduser(location)).absolute()  # workers may stand elsewhere
    if path.is_dir():
        listed = _listing(path)
        return TableSource(listed, columns) if listed else FolderSource(path)
    if not path.exists():
        raise ConfigError(f"{location}: no such file or folder")
    if path.suffix not in _READERS:
        raise ConfigError(f"{location}: is {path.suffix!r}; one of {', '.join(_READERS)} is needed")
    return TableSource(path, columns)


def _listing(folder: Path) -> Path | None:
    """The .jsonl that lists a folder's pictures, if there is one."""
    found = sorted(folder.glob("*.jsonl"))
    named = [path for path in found if path.name == "pairs.jsonl"]
    if len(found) > 1 and not named:
        raise ConfigError(f"{folder}: holds {len(found)} .jsonl and no pairs.jsonl; name one")
    return next(iter(named or found), None)


class TableSource:
    """A table with a row a picture: its URL, or its path relative to the table's folder."""

    def __init__(self, path: Path, columns: SourceColumns) -> None:
        self.path = path
        names = _column_names(path)
        locations = [columns.url_column, columns.file_column]
        if columns.url_column not in ("", SourceColumns.url_column):  # asked for by name
            locations.pop()
        self._column = _either(path, names, *filter(None, locations))
        self._by_url = self._column == columns.url_column
        self.folder = None if self._by_url else path.parent
        wanted = [columns.caption_column] if columns.caption_column else ["caption", "captions"]
        self._captions = _either(path, names, *wanted)

    def digest(self) -> str:
        with self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        read_as = f"{'url' if self._by_url else 'file'} {self._column} {self._captions}"
        return hashlib.sha256(f"{read_as} {content}".encode()).hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        uid = uid_of_url if self._by_url else uid_of
        read = _READERS[self.path.suffix]
        try:
            for batch in read(self.path, self._column, self._captions):
                yield _source_table(
                    _texts(batch.column(self._column)), batch.column(self._captions), uid
                )
        except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{self.path}: cannot be read: {first_line(error)}") from error


class FolderSource:
    """A folder tree of pictures, each with its captions in a text file of the same name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in _PICTURE_SUFFIXES
        )
        if not self._files:
            raise ConfigError(f"{folder}: holds neither a .jsonl nor pictures")

    def digest(self) -> str:
        sha = hashlib.sha256()
        for table in self.tables():
            sha.update(json.dumps(table.drop_columns("uid").to_pylist()).encode())
        return sha.hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        for start in range(0, len(self._files), 1024):
            files = self._files[start : start + 1024]
            # A name that is no UTF-8 is replaced: such a picture ends as failed, not the job.
            names = [os.fsencode(path.relative_to(self.folder).as_posix()) for path in files]
            paths = [name.decode(errors="replace") for name in names]
            captions = pa.array([_captions_beside(path) for path in files], pa.list_(pa.string()))
            yield _source_table(paths, captions, uid_of)


def _source_table(locations: list[str], captions: Any, uid: Any) -> pa.Table:
    return pa.table(
        {
            "uid": pa.array([uid(location) for location in locations], SOURCE.field("uid").type),
            "url": pa.array(locations, pa.string()),
            "captions": pa.array(_caption_lists(captions), pa.list_(pa.string())),
        },
        schema=SOURCE,
    )


def _captions_beside(picture: Path) -> list[str]:
    text = picture.with_suffix(".txt")
    if not text.is_file():
        return []
    lines = text.read_text(encoding="utf-8-sig", errors="replace").rstrip("\n")
    return lines.split("\n") if lines else []


def _texts(column: Any) -> list[str]:
    """Cells as text: null is empty, and bytes that are no UTF-8 are replaced."""
    return [_text(cell) for cell in column.to_pylist()]


def _caption_lists(column: Any) -> list[list[str]]:
    """Captions of each row: a null is none, one text is a list of one."""
    cells = column.to_pylist()
    return [
        []
        if cell is None
        else [_text(item) for item in (cell if isinstance(cell, list) else [cell])]
        for cell in cells
    ]


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", errors="replace")
    return str(cell)


def _either(path: Path, names: list[str], *wanted: str) -> str:
    for name in wanted:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: has the column {name!r} {names.count(name)} times")
        if name in names:
            return name
    raise ConfigError(f"{path}: has no column {' or '.join(map(repr, wanted))}, only {names}")


def _column_names(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            return list(pa.parquet.read_schema(path).names)
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                rows = [json.loads(line or b"null") for line in _stripped(file)]
            rows = [row for row in rows if row is not None]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line holds no JSON object")
            return list(dict.fromkeys(name for row in rows for name in row))
        with pa.csv.open_csv(path, parse_options=_csv_options(path)) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from error


def _stripped(lines: Iterable[bytes]) -> list[bytes]:
    return [line.strip() for line in islice(lines, _LINES_FOR_NAMES)]


def _csv_options(path: Path) -> pa.csv.ParseOptions:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _read_csv(path: Path, location: str, captions: str) -> Iterator[pa.RecordBatch]:
    # As bytes: one cell that is no UTF-8 must not lose the whole table.
    types = {location: pa.binary(), captions: pa.binary()}
    with pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=_csv_options(path),
        convert_options=pa.csv.ConvertOptions(include_columns=list(types), column_types=types),
    ) as reader:
        yield from reader


def _read_jsonl(path: Path, location: str, captions: str) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as file:
        cells = (json.loads(line or b"{}").get(captions) for line in map(bytes.strip, file))
        first = next((cell for cell in cells if cell is not None), None)
    kind = pa.list_(pa.string()) if isinstance(first, list) else pa.string()
    with pa.json.open_json(
        path,
        read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema([(location, pa.string()), (captions, kind)]),
            unexpected_field_behavior="ignore",
        ),
    ) as reader:
        yield from reader


def _read_parquet(path: Path, location: str, captions: str) -> Iterator[pa.RecordBatch]:
    with pa.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=8192, columns=[location, captions])


_READERS = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
}


def cut(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows`, but the last."""
    pending = SOURCE.empty_table()
    for table in tables:
        pending = pa.concat_tables([pending, table])
        while pending.num_rows >= rows:
            yield pending.slice(0, rows).combine_chunks()
            pending = pending.slice(rows)
    if pending.num_rows:
        yield pending.combine_chunks()


def num_captions(table: pa.Table) -> int:
    """How many captions a table of pictures holds."""
    return pc.sum(pc.list_value_length(table.column("captions"))).as_py() or 0
