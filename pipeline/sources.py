"""Sources of pairs: what a location holds, as tables of (location, captions) in a fixed order.

The tables are of bounded size, so that memory does not grow with the source. A source knows its
digest, by which a job that goes on sees that the source is still the same.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations import AnnotationSource
from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, Fetcher
from pipeline.picture_folders import FolderSource
from pipeline.schemas import SLICE
from pipeline.source_files import SourceFile, files_in, find, own_folder
from pipeline.storage import Folder
from pipeline.table_files import TABLE_FORMATS, is_table
from pipeline.tars import TarSource, is_tar
from pipeline.url_tables import SourceColumns, TableSource


class Source(Protocol):
    """Pairs in a fixed order, not fetched yet."""

    @property
    def locations(self) -> str:
        """What its locations are: `url`, `file`, `row` of a table or `member` of a tar."""
        ...

    @property
    def extra(self) -> pa.StructType | None:
        """The type of its column `extra`; None if it has none."""
        ...

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        """What makes, in each worker, the fetcher of its locations."""
        ...

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what the source says: not of the pictures."""
        ...

    def tables(self) -> Iterator[pa.Table]:
        """Tables of `schemas.SOURCE`, and `extra`, of any size, in order."""
        ...


def open_source(
    location: str,
    columns: SourceColumns,
    picture_folder: str | None = None,
    annotation_split: str | None = None,
) -> Source:
    """Find out what kind of source this is.

    Args:
        location: a path or URI of a table (.parquet, .arrow, .csv, .tsv, .jsonl; the last three
            also with .gz or .zst) or a WebDataset tar, of several by wildcards, or of a folder:
            with tables (`pairs.jsonl`, or else all there are) or tars, or a local one of pictures
            with captions beside them (`cat.jpg` and `cat.txt`, a caption a line); or of one
            annotation file (.json).
        columns: which columns of a table to read.
        picture_folder: where the pictures lie that a table or an annotation file lists; by default
            its folder.
        annotation_split: of an annotation file in Karpathy's format the pictures of this split
            alone.

    Raises:
        ConfigError: there is no such file, it is of another kind, or it lacks a column.
    """
    pictures = _local_folder(picture_folder) if picture_folder else None
    found = find(location)
    files = _tables(found) if isinstance(found, Folder) else found
    if len(files) == 1 and files[0].format == ".json":
        folder = pictures or own_folder(files)
        return AnnotationSource(files[0], folder, columns.kept, annotation_split)
    if annotation_split is not None:
        raise ConfigError(f"annotation_split: {location} is no annotation file (.json)")
    if isinstance(found, Folder) and not files:
        if pictures or not found.is_local:
            raise ConfigError(f"{location}: holds no table")
        if columns.kept:
            raise ConfigError(f"keep: {location} is a folder of pictures, which has no columns")
        return FolderSource(Path(found.path))
    if all(map(is_tar, files)):
        if pictures:
            raise ConfigError(
                f"picture_folder: {pictures} is not used, {files[0]} has the pictures"
            )
        return TarSource(files, columns.kept, columns.caption_column)
    for file in files:
        if file.format == ".json":
            raise ConfigError(f"{file}: is '.json', which is read alone; name one")
        if is_tar(file):
            raise ConfigError(f"{file}: is a tar, and others here are none; name the ones meant")
        if not is_table(file):
            raise ConfigError(
                f"{file}: is {file.ending!r}; one of {TABLE_FORMATS}, .tar, .json is needed"
            )
    return TableSource(files, columns, pictures)


def _local_folder(location: str) -> Path:
    folder = Folder.at(location)  # workers may stand elsewhere, so it is made absolute
    if not (folder.is_local and folder.exists()):
        raise ConfigError(f"picture_folder: {location}: no such local folder")
    return Path(folder.path)


def _tables(folder: Folder) -> list[SourceFile]:
    """The tables that a folder is read as, or tars: `pairs.jsonl`, or all, of one format."""
    tables = [file for file in files_in(folder) if is_table(file) or is_tar(file)]
    formats = sorted({file.format for file in tables})
    if named := [file for file in tables if file.name == "pairs.jsonl"]:
        return named
    if len(formats) > 1:
        raise ConfigError(f"{folder}: holds tables in {' and '.join(formats)}; name the ones meant")
    return tables


def cut(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, numbered (`schemas.SLICE`), in tables of exactly `rows`, but the last."""
    pending: pa.Table | None = None
    for table in _numbered(tables):
        pending = table if pending is None else pa.concat_tables([pending, table])
        while pending.num_rows >= rows:
            yield pending.slice(0, rows).combine_chunks()
            pending = pending.slice(rows)
    if pending is not None and pending.num_rows:
        yield pending.combine_chunks()


def _numbered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """With the column `source_row`; rows that are fetched again have theirs already."""
    place = SLICE.get_field_index("source_row")
    first = 0
    for table in tables:
        if "source_row" not in table.schema.names:
            numbers = pa.array(range(first, first + table.num_rows), pa.int64())
            table = table.add_column(place, "source_row", numbers)
            first += table.num_rows
        yield table


def num_captions(table: pa.Table) -> int:
    """How many captions a table of pictures holds."""
    return pc.sum(pc.list_value_length(table.column("captions"))).as_py() or 0
