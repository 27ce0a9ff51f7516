"""Tables of URLs or files, of any size, in one file or many: parquet, csv, tsv and jsonl."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import ConfigError, first_line
from pipeline.fetch import FetchConfig, Fetcher, HttpFetcher
from pipeline.picture_folders import folder_fetcher
from pipeline.source_files import COMPRESSIONS, SourceFile, own_folder
from pipeline.source_rows import caption_list, source_rows, text
from pipeline.uids import uid_of, uid_of_url

_BLOCK_BYTES = 1 << 22
"""Of a csv or jsonl that is parsed at once. Arrow reads some thirty blocks ahead; no row can be
longer than one."""
_ROWS = 8192
"""Rows a table."""
_LINES_FOR_NAMES = 100
"""Lines of a jsonl that are read to learn its columns; a null column may be left out in some."""


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """Names of the columns of a table."""

    url_column: str = "url"
    """Column with the picture's URL; empty where the file column is to be used."""

    file_column: str = "file"
    """Column with the picture's path in the picture folder, used instead where there is no URL."""

    caption_column: str | None = None
    """Column with the caption, or a list of captions; by default `caption` or `captions`,
    whichever is there."""


class TableSource:
    """Tables with a row a picture: its URL, or its path in the picture folder.

    The first table says which columns are read, and all must have them.
    """

    def __init__(
        self, files: list[SourceFile], columns: SourceColumns, picture_folder: Path | None = None
    ) -> None:
        """Read the tables' heads.

        Args:
            files: in the order in which they are read, at least one.
            columns: which columns to read.
            picture_folder: where the file column begins; None is the tables' own folder.

        Raises:
            ConfigError: a table cannot be read or lacks a column, or the picture folder does not
                fit the tables.
        """
        self.files = files
        names = _column_names(files[0])
        locations = [columns.url_column, columns.file_column]
        if columns.url_column not in ("", SourceColumns.url_column):  # asked for by name
            locations.pop()
        self._column = _either(files[0], names, *filter(None, locations))
        self._by_url = self._column == columns.url_column
        wanted = [columns.caption_column] if columns.caption_column else ["caption", "captions"]
        self._captions = _either(files[0], names, *wanted)
        for file in files[1:]:
            names = _column_names(file)
            _either(file, names, self._column)
            _either(file, names, self._captions)
        self.folder = self._picture_folder(picture_folder)

    @property
    def locations(self) -> str:
        return "url" if self._by_url else "file"

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        return folder_fetcher(self.folder) if self.folder else HttpFetcher

    def digest(self) -> str:
        content = " ".join(file.digest() for file in self.files)
        read_as = f"{self.locations} {self._column} {self._captions}"
        return hashlib.sha256(f"{read_as} {content}".encode()).hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        for file in self.files:
            yield from self._tables_of(file)

    def _tables_of(self, file: SourceFile) -> Iterator[pa.Table]:
        uid = uid_of_url if self._by_url else uid_of
        try:
            for block in _READERS[file.format](file, self._column, self._captions):
                for start in range(0, block.num_rows, _ROWS):
                    batch = block.slice(start, _ROWS)
                    yield source_rows(
                        [text(cell) for cell in batch.column(self._column).to_pylist()],
                        [caption_list(cell) for cell in batch.column(self._captions).to_pylist()],
                        uid,
                    )
        except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{file}: cannot be read: {first_line(error)}") from error

    def _picture_folder(self, given: Path | None) -> Path | None:
        if self._by_url:
            if given:
                raise ConfigError(
                    f"picture_folder: {given} is not used, {self.files[0]} has URLs in its column "
                    f"{self._column!r}; --url-column '' reads its files instead"
                )
            return None
        return given or own_folder(self.files)


def is_table(file: SourceFile) -> bool:
    """Whether a file's name says that it is a table; a parquet is compressed inside."""
    return file.format in _READERS and not (file.compression and file.format == ".parquet")


TABLE_FORMATS = (
    f".parquet, .csv, .tsv, .jsonl (all but the first also with {' or '.join(COMPRESSIONS)})"
)


def _either(file: SourceFile, names: list[str], *wanted: str) -> str:
    for name in wanted:
        if names.count(name) > 1:
            raise ConfigError(f"{file}: has the column {name!r} {names.count(name)} times")
        if name in names:
            return name
    raise ConfigError(f"{file}: has no column {' or '.join(map(repr, wanted))}, only {names}")


def _column_names(file: SourceFile) -> list[str]:
    try:
        if file.format == ".parquet":
            with file.random_access() as stored:
                return list(pa.parquet.read_schema(stored).names)
        if file.format == ".jsonl":
            rows = [row for row in islice(_json_lines(file), _LINES_FOR_NAMES) if row is not None]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line holds no JSON object")
            return list(dict.fromkeys(name for row in rows for name in row))
        with file.stream() as stream:
            with pa.csv.open_csv(stream, parse_options=_csv_options(file)) as reader:
                return list(reader.schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {first_line(error)}") from error


def _json_lines(file: SourceFile) -> Iterator[Any]:
    """What each line holds; None for a blank one."""
    with io.BufferedReader(file.stream()) as lines:
        for line in map(bytes.strip, lines):
            yield json.loads(line) if line else None


def _csv_options(file: SourceFile) -> pa.csv.ParseOptions:
    delimiter = "\t" if file.format == ".tsv" else ","
    return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _read_csv(file: SourceFile, location: str, captions: str) -> Iterator[pa.RecordBatch]:
    # As bytes: one cell that is no UTF-8 must not lose the whole table.
    types = {location: pa.binary(), captions: pa.binary()}
    with file.stream() as stream:
        with pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=_csv_options(file),
            convert_options=pa.csv.ConvertOptions(include_columns=list(types), column_types=types),
        ) as reader:
            yield from reader


def _read_jsonl(file: SourceFile, location: str, captions: str) -> Iterator[pa.RecordBatch]:
    cells = (row.get(captions) for row in _json_lines(file) if row is not None)
    first = next((cell for cell in cells if cell is not None), None)
    kind = pa.list_(pa.string()) if isinstance(first, list) else pa.string()
    with file.stream() as stream:
        with pa.json.open_json(
            stream,
            read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pa.json.ParseOptions(
                explicit_schema=pa.schema([(location, pa.string()), (captions, kind)]),
                unexpected_field_behavior="ignore",
            ),
        ) as reader:
            yield from reader


def _read_parquet(file: SourceFile, location: str, captions: str) -> Iterator[pa.RecordBatch]:
    with file.random_access() as stored, pa.parquet.ParquetFile(stored) as table:
        yield from table.iter_batches(batch_size=_ROWS, columns=[location, captions])


_READERS: dict[str, Callable[[SourceFile, str, str], Iterator[pa.RecordBatch]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
}
