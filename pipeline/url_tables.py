"""Tables of URLs, of files or with pictures in them, of any size, in one file or many."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ConfigError, first_line
from pipeline.extra import extra_column, kept_type
from pipeline.fetch import FetchConfig, Fetcher, HttpFetcher
from pipeline.picture_folders import folder_fetcher
from pipeline.picture_tables import TableFetcher, is_picture
from pipeline.source_files import SourceFile, own_folder, relative_names
from pipeline.source_rows import caption_list, rows_digest, source_rows, text
from pipeline.table_files import UNREADABLE, columns_of, read_cells
from pipeline.uids import uid_of, uid_of_url

logger = logging.getLogger(__name__)

_NAME_CHARS = 60
"""Of a column's name that an error shows; a quote in a header can make one of whole rows."""
_TEXTS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    pa.types.is_null,
)
"""Types that hold captions, by what knows them."""


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """Names of the columns of a table."""

    url_column: str = "url"
    """Column with the picture's URL; empty where the file column is to be used."""

    file_column: str = "file"
    """Column with the picture's path in the picture folder, used instead where there is no URL."""

    picture_column: str | None = None
    """Column of a parquet or Arrow table with the pictures themselves, as bytes or {bytes, path};
    by default `image` or `picture`, where there is neither URL nor file."""

    caption_column: str | None = None
    """Column with the caption, or a list of captions; by default `caption` or `captions`,
    whichever is there. What is no text in JSON (an object, a number) is an empty caption."""

    keep: tuple[str, ...] = ()
    """Further columns (of annotations and of JSON in tars: fields) to carry along into `raw` and
    `pairs`, with spaces or commas between: `--keep license,source`."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The names in `keep`."""
        names = (name.strip() for words in self.keep for name in words.split(","))
        return tuple(dict.fromkeys(filter(None, names)))


class TableSource:
    """Tables with a row a picture: its URL, its path in the picture folder, or its very bytes.

    The first table says which columns are read, and all must have them. A csv, tsv or jsonl that
    holds no row is passed over.
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
            ConfigError: a table cannot be read or lacks a column, none holds a row, or the picture
                folder does not fit the tables.
        """
        self.files: list[SourceFile] = []
        for file, fields in _with_rows(files):
            if not self.files:
                self._choose(file, fields, columns)
            for name in (self._column, *columns.kept):
                _either(file, fields, name)
            _check_captions(file, fields, self._captions)
            self.files.append(file)
        self.folder = self._picture_folder(picture_folder)

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        if self.locations == "row":
            return partial(TableFetcher, self.files, self._column)
        return folder_fetcher(self.folder) if self.folder else HttpFetcher

    def digest(self) -> str:
        kept = [f"{field.name}:{field.type}" for field in self.extra or ()]
        read_as = " ".join([self.locations, self._column, self._captions, *kept])
        if self.locations == "row":
            content = rows_digest(self.tables())
        else:
            content = " ".join(file.digest() for file in self.files)
        return hashlib.sha256(f"{read_as} {content}".encode()).hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        """See `sources.Source`. Raises ConfigError where a table is damaged, or none has a row."""
        num_rows = 0
        for file, name in zip(self.files, relative_names(self.files), strict=True):
            for table in self._tables_of(file, name):
                num_rows += table.num_rows
                yield table
        if not num_rows:
            raise _no_rows(self.files)

    def _tables_of(self, file: SourceFile, name: str) -> Iterator[pa.Table]:
        uid = uid_of_url if self.locations == "url" else uid_of
        kept = [field.name for field in self.extra or ()]
        column = [] if self.locations == "row" else [self._column]
        first = 0
        try:
            for cells in read_cells(file, list(dict.fromkeys([*column, self._captions, *kept]))):
                captions = [caption_list(cell) for cell in cells[self._captions]]
                if column:
                    places = [text(cell) for cell in cells[self._column]]
                else:
                    places = [f"{name}/{row}" for row in range(first, first + len(captions))]
                first += len(captions)
                extra = extra_column(cells, self.extra) if self.extra else None
                yield source_rows(places, captions, uid, extra)
        except UNREADABLE as error:
            raise ConfigError(f"{file}: cannot be read: {first_line(error)}") from error

    def _choose(self, file: SourceFile, fields: list[pa.Field], columns: SourceColumns) -> None:
        """Find out what is read of all tables by what is in the first."""
        self.locations, self._column = _location(file, fields, columns)
        wanted = [columns.caption_column] if columns.caption_column else ["caption", "captions"]
        self._captions = _either(file, fields, *wanted).name
        kept = [_either(file, fields, name) for name in columns.kept]
        self.extra = pa.struct([(f.name, kept_type(f.type)) for f in kept]) if kept else None

    def _picture_folder(self, given: Path | None) -> Path | None:
        if self.locations == "file":
            return given or own_folder(self.files)
        if given:
            what = "URLs" if self.locations == "url" else "pictures"
            raise ConfigError(
                f"picture_folder: {given} is not used, {self.files[0]} has {what} in its column "
                f"{self._column!r}; --url-column '' reads its files instead"
            )
        return None


def _with_rows(files: list[SourceFile]) -> Iterator[tuple[SourceFile, list[pa.Field]]]:
    """The tables but those that `columns_of` knows to hold no row, with their columns.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    passed_over = []
    for file in files:
        fields = columns_of(file)
        if fields is None:
            passed_over.append(file)
        else:
            yield file, fields
    if len(passed_over) == len(files):
        raise _no_rows(files)
    if passed_over:
        logger.info(
            "passed over, for they hold no row: tables=%d first=%s",
            len(passed_over),
            passed_over[0],
        )


def _no_rows(files: list[SourceFile]) -> ConfigError:
    others = f", nor do the other {len(files) - 1:,}" if len(files) > 1 else ""
    return ConfigError(f"{files[0]}: holds no row{others}")


def _location(file: SourceFile, fields: list[pa.Field], columns: SourceColumns) -> tuple[str, str]:
    """What a table's locations are, and the column that says where its pictures are."""
    if columns.picture_column:
        picture = _either(file, fields, columns.picture_column)
        if not is_picture(picture.type):
            raise ConfigError(f"{file}: {picture.name!r} is {picture.type}, which is no picture")
        return "row", picture.name
    wanted = [columns.url_column, columns.file_column]
    asked_for = columns.url_column not in ("", SourceColumns.url_column)
    if asked_for:
        wanted.pop()
    names = {field.name for field in fields}
    if not asked_for and not names.intersection(wanted):
        for field in fields:
            if field.name in ("image", "picture") and is_picture(field.type):
                return "row", field.name
    column = _either(file, fields, *filter(None, wanted)).name
    return ("url" if column == columns.url_column else "file"), column


def _check_captions(file: SourceFile, fields: list[pa.Field], name: str) -> None:
    """Refuse a column that is neither of captions nor of lists of them, by its declared type."""
    declared = _either(file, fields, name).type
    kind = declared
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _TEXTS):
        raise ConfigError(f"{file}: {name!r} is {declared}, which is no caption nor a list of them")


def _either(file: SourceFile, fields: list[pa.Field], *wanted: str) -> pa.Field:
    names = [field.name for field in fields]
    for name in wanted:
        if names.count(name) > 1:
            raise ConfigError(f"{file}: has the column {name!r} {names.count(name)} times")
        if name in names:
            return fields[names.index(name)]
    some = [name[:_NAME_CHARS] for name in names]
    raise ConfigError(f"{file}: has no column {' or '.join(map(repr, wanted))}, only {some}")
