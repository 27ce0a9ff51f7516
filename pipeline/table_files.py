"""Files that hold a table: their columns, and the cells of some of them, block by block.

Parquet, Arrow (IPC files and streams, also of the library datasets), csv, tsv and jsonl.
"""

import codecs
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.csv_quotes import QuotedValues
from pipeline.errors import ConfigError, first_line
from pipeline.source_files import COMPRESSIONS, SourceFile

logger = logging.getLogger(__name__)

Cells = Mapping[str, Sequence[Any]]
"""Values by column, of equally many rows."""

_BLOCK_BYTES = 1 << 22
"""Of a csv or of a parquet's columns that are read at once."""
_LINE_BYTES = 1 << 26
"""Of a line of a jsonl, or a row of a csv, at most."""
_ROWS = 8192
"""Rows a block at most."""
_LINES = 1024
"""Of a jsonl a block: each may be long."""
_LINES_FOR_NAMES = 100
"""Lines of a jsonl that are read to learn its columns; a null column may be left out in some."""

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What a damaged table may raise while it is read."""


def is_table(file: SourceFile) -> bool:
    """Whether a file's name says that it is a table; some are compressed inside."""
    return file.format in _READERS and not (file.compression and file.format in _BINARY)


_BINARY = (".parquet", ".arrow")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_FORMATS = (
    f".parquet, .arrow, .csv, .tsv, .jsonl (the last three also with {' or '.join(COMPRESSIONS)})"
)


def columns_of(file: SourceFile) -> list[pa.Field] | None:
    """The columns of a table with their types: text where the format declares none.

    None where no row could say any: of a csv, tsv or jsonl that is empty or has a header alone, as
    Spark and others write them for parts without rows.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        if file.format == ".parquet":
            with file.random_access() as stored:
                return list(pa.parquet.read_schema(stored))
        if file.format == ".arrow":
            with file.mapped() as stored:
                return list(_open_arrow(stored).schema)
        names = _names_of_jsonl(file) if file.format == ".jsonl" else _names_of_csv(file)
    except UNREADABLE as error:
        raise ConfigError(f"{file}: cannot be read: {first_line(error)}") from error
    return None if names is None else [pa.field(name, pa.string()) for name in names]


def read_cells(file: SourceFile, names: Sequence[str]) -> Iterator[Cells]:
    """Blocks of at most 8,192 rows of some columns; a csv's cells are bytes.

    Raises:
        ArrowException, OSError, ValueError: the table is damaged.
    """
    return _READERS[file.format](file, names)


def arrow_batches(
    file: SourceFile, names: Sequence[str], first_row: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Record batches of a parquet or an Arrow table, each with the number of its first row.

    Args:
        file: the table.
        names: columns, or fields of them (`image.bytes`; of a parquet alone).
        first_row: the rows before it need not be among them.
    """
    if file.format == ".parquet":
        return _parquet_batches(file, names, first_row)
    return _ipc_batches(file, names)


def end_of_damage(file: SourceFile, row: int) -> float:
    """The row after those that are lost if this one cannot be read: the end of a parquet's row
    group; infinite where all that follows is lost."""
    if file.format != ".parquet":
        return math.inf
    try:
        with file.random_access() as stored:
            metadata = pa.parquet.read_metadata(stored)
    except UNREADABLE:
        return math.inf
    sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return next((end for end in accumulate(sizes) if end > row), math.inf)


def _read_typed(file: SourceFile, names: Sequence[str]) -> Iterator[Cells]:
    for _, block in arrow_batches(file, names):
        for start in range(0, block.num_rows, _ROWS):
            batch = block.slice(start, _ROWS)
            yield {name: batch.column(name).to_pylist() for name in names}


def _parquet_batches(
    file: SourceFile, names: Sequence[str], first_row: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    # Through a buffer, so that a column of a large row group is never whole in memory.
    with (
        file.random_access() as stored,
        pa.parquet.ParquetFile(stored, buffer_size=1 << 20, pre_buffer=False) as table,
    ):
        size, end = _batch_rows(table, names), 0
        for group in range(table.num_row_groups):
            row, end = end, end + table.metadata.row_group(group).num_rows
            if end <= first_row:
                continue
            for batch in table.iter_batches(size, [group], columns=list(names)):
                yield row, batch
                row += batch.num_rows


def _batch_rows(table: pa.parquet.ParquetFile, names: Sequence[str]) -> int:
    """Rows that take up some 4 MB by the file's own account: pictures weigh more than captions."""
    metadata = table.metadata
    weight = sum(
        column.total_uncompressed_size
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for column in map(group.column, range(group.num_columns))
        if any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in names)
    )
    return min(_ROWS, max(1, _BLOCK_BYTES * metadata.num_rows // max(weight, 1)))


def _ipc_batches(file: SourceFile, names: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    with file.mapped() as stored:
        schema = _open_arrow(stored).schema
        stored.seek(0)
        reader = _open_arrow(stored, [schema.get_field_index(name) for name in names])
        row = 0
        for batch in _batches_of(reader):
            yield row, batch
            row += batch.num_rows


def _batches_of(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchStreamReader):
        yield from reader
    else:
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


def _open_arrow(stored: pa.NativeFile, columns: list[int] | None = None) -> Any:
    """A reader of an IPC file or stream, whichever it is."""
    is_file = stored.read(6) == b"ARROW1"
    stored.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=columns)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(stored, options=options)


def _names_of_csv(file: SourceFile) -> list[str] | None:
    names = None
    for block in _csv_blocks(file, QuotedValues(_DELIMITERS[file.format])):
        table = _parsed_csv(block, file.format, names)
        names = table.column_names
        if table.num_rows:
            return names
    return None


def _read_csv(file: SourceFile, names: Sequence[str]) -> Iterator[Cells]:
    # As bytes: one cell that is no UTF-8 must not lose the whole table.
    options = pa.csv.ConvertOptions(
        include_columns=list(names), column_types=dict.fromkeys(names, pa.binary())
    )
    quotes = QuotedValues(_DELIMITERS[file.format])
    header = None
    for block in _csv_blocks(file, quotes):
        table = _parsed_csv(block, file.format, header, options)
        header = header or _parsed_csv(block, file.format).column_names
        for start in range(0, table.num_rows, _ROWS):
            rows = table.slice(start, _ROWS)
            yield {name: rows.column(name).to_pylist() for name in names}
    if quotes.num_doubtful:
        logger.warning(
            "quotes may be amiss, and rows lost within values: file=%s values=%d first_line=%d",
            file,
            quotes.num_doubtful,
            quotes.first_doubtful_line,
        )


def _csv_blocks(file: SourceFile, quotes: QuotedValues) -> Iterator[bytes]:
    """Whole rows, of some 4 MB together where none is longer; the header is in the first block.

    Arrow would read ahead, cannot tell of a quote that is never closed, and takes no longer rows.
    """
    block = b""
    with file.stream() as stream:
        while data := stream.read(_BLOCK_BYTES):
            end = quotes.follow(data)
            block += data[:end]
            if end and block.removeprefix(codecs.BOM_UTF8).strip():
                yield block
                block = b""
            block += data[end:]
            if len(block) > _LINE_BYTES:
                what = f"is not closed within {_LINE_BYTES:,} bytes"
                size = f"a row is longer than {_LINE_BYTES:,} bytes"
                raise ValueError(f"{quotes.open_quote} {what}" if quotes.open_quote else size)
    quotes.end()
    if block.removeprefix(codecs.BOM_UTF8).strip():
        yield block + b"\n"  # to Arrow a header without a line's end is none


def _parsed_csv(
    block: bytes,
    ending: str,
    header: list[str] | None = None,
    options: pa.csv.ConvertOptions | None = None,
) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(block),
        pa.csv.ReadOptions(block_size=len(block) + 1, column_names=header),
        pa.csv.ParseOptions(delimiter=_DELIMITERS[ending], newlines_in_values=True),
        options,
    )


def _names_of_jsonl(file: SourceFile) -> list[str] | None:
    first = list(islice(_json_lines(file), _LINES_FOR_NAMES))
    return list(dict.fromkeys(name for row in first for name in row)) if first else None


def _read_jsonl(file: SourceFile, names: Sequence[str]) -> Iterator[Cells]:
    lines = _json_lines(file)
    while rows := [[row.get(name) for name in names] for row in islice(lines, _LINES)]:
        yield dict(zip(names, zip(*rows, strict=True), strict=True))


def _json_lines(file: SourceFile) -> Iterator[dict[str, Any]]:
    """What each line holds; blank ones are passed over."""
    with io.BufferedReader(file.stream(), 1 << 20) as lines:
        number = 0
        while line := lines.readline(_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            if len(line) == _LINE_BYTES:
                raise ValueError(f"line {number} is longer than {_LINE_BYTES:,} bytes")
            try:
                row = json.loads(line.decode("utf-8-sig", errors="replace"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {first_line(error)}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds no JSON object")
            yield row


_READERS: dict[str, Callable[[SourceFile, Sequence[str]], Iterator[Cells]]] = {
    ".parquet": _read_typed,
    ".arrow": _read_typed,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
}
