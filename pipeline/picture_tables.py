"""Pictures inside tables: a parquet or Arrow column of bytes, or of structs {bytes, path}."""

import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.fetch import FetchConfig, FetchFault
from pipeline.source_files import SourceFile, relative_names
from pipeline.table_files import UNREADABLE, arrow_batches

_HELD_BYTES = 64 << 20
"""Of a worker's batches that are kept: its threads are at most some dozens of rows apart."""


def is_picture(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold pictures: bytes, or a struct that has them."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_picture(kind.field("bytes").type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in binary)


class TableFetcher:
    """Fetches the picture of a row, `00000.parquet/17`. A `path` that a struct names is not read.

    A worker's rows come nearly in order, so a table is read forward, batch by batch, and the last
    batches are kept; memory depends on neither the table nor its row groups.
    """

    def __init__(self, files: Sequence[SourceFile], column: str, config: FetchConfig) -> None:
        self._files = dict(zip(relative_names(files), files, strict=True))
        self._column = column
        self._max_bytes = config.max_download_bytes
        self._lock = threading.Lock()
        self._name = ""
        self._batches: Iterator[tuple[int, pa.Array]] = iter(())
        self._next_row = 0
        self._held: tuple[tuple[str, int, pa.Array], ...] = ()
        """Table, first row and pictures; replaced and never changed, so looked at without the lock:
        a thread that waited for it too long would find its row gone, and the table read again."""

    def __call__(self, location: str) -> bytes:
        name, _, row = location.rpartition("/")
        if name not in self._files or not row.isdecimal():
            raise FetchFault("failed:bad_path")
        picture = self._look_up(name, int(row))
        if picture is None:
            with self._lock:
                picture = self._look_up(name, int(row))
                if picture is None:
                    picture = self._read_to(name, int(row))
        if not picture.is_valid:
            raise FetchFault("failed:missing_file")
        if len(picture.as_buffer()) > self._max_bytes:
            raise FetchFault("failed:too_large")
        return picture.as_py()

    def _look_up(self, name: str, row: int) -> pa.Scalar | None:
        for table, first, pictures in self._held:
            if table == name and first <= row < first + len(pictures):
                return pictures[row - first]
        return None

    def _read_to(self, name: str, row: int) -> pa.Scalar:
        """Read on until the row is there. Raises FetchFault."""
        if name != self._name or row < self._next_row:
            self._open(name, row)
        try:
            for first, pictures in self._batches:
                self._next_row = first + len(pictures)
                self._hold(first, pictures)
                if row < self._next_row:
                    return pictures[row - first]
        except UNREADABLE:
            self._name = ""
            raise FetchFault("failed:unreadable_file") from None
        raise FetchFault("failed:missing_file")

    def _open(self, name: str, row: int) -> None:
        self._name, self._next_row = name, row  # what lies before it is not read
        file = self._files[name]
        self._batches = (
            (first, _bytes_of(batch.column(0)))
            for first, batch in arrow_batches(file, [self._column], row)
        )

    def _hold(self, first: int, pictures: pa.Array) -> None:
        held = (*self._held, (self._name, first, pictures))
        sizes = [batch.nbytes for _, _, batch in held]
        while len(sizes) > 2 and sum(sizes) > _HELD_BYTES:
            sizes.pop(0)
        self._held = held[-len(sizes) :]


def _bytes_of(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
