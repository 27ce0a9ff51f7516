"""Pictures inside tables: a parquet or Arrow column of bytes, or of structs {bytes, path}."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.bodies import IN_MEMORY_BYTES, gathered
from pipeline.fetch import FetchConfig, Fetcher, FetchFault
from pipeline.source_files import SourceFile, relative_names
from pipeline.table_files import UNREADABLE, arrow_batches, end_of_damage


def is_picture(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold pictures: bytes, or a struct that has them."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_picture(kind.field("bytes").type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in binary)


class TableFetcher(Fetcher):
    """Fetches the picture of a row, `00000.parquet/17`. A `path` that a struct names is not read.

    Threads ask nearly in the order of the rows, and one that is late would find its row passed. So
    a shard's rows are known beforehand (`expect`), and read in their order, once: whoever asks
    for one that is not read yet reads up to it, and a batch is kept until all its rows were asked
    for. Memory is that of the batches whose rows the threads are at; large pictures wait in files.
    """

    def __init__(self, files: Sequence[SourceFile], column: str, config: FetchConfig) -> None:
        self._files = dict(zip(relative_names(files), files, strict=True))
        self._column = column
        self._max_bytes = config.max_download_bytes
        self._lock = threading.Lock()
        self._due: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """Locations to read, in order, with their table and row."""
        self._read: dict[str, pa.Scalar | IO[bytes] | Exception] = {}
        """Pictures that were read and not asked for yet, or what is raised instead; a scalar keeps
        its batch."""
        self._name = ""
        self._batches: Iterator[tuple[int, pa.Array]] = iter(())
        self._first, self._pictures = 0, pa.nulls(0)
        """The last batch with its first row; the next shard may begin in it."""

    def expect(self, locations: Sequence[str]) -> None:
        """See `Fetcher`. What is asked for otherwise is `failed:bad_path`."""
        order = {name: number for number, name in enumerate(self._files)}
        due = {}
        for location in locations:
            name, _, row = location.rpartition("/")
            if name in order and row.isdecimal():
                due[location] = name, int(row)
        ascending = sorted(due.items(), key=lambda item: (order[item[1][0]], item[1][1]))
        with self._lock:
            self._due = OrderedDict(ascending)
            self._read = {}

    def __call__(self, location: str) -> bytes | IO[bytes]:
        with self._lock:
            while location in self._due:
                self._read_on(*next(iter(self._due.values())))
            picture = self._read.pop(location, FetchFault("failed:bad_path"))
        if isinstance(picture, Exception):
            raise picture
        return picture.as_py() if isinstance(picture, pa.Scalar) else picture

    def _read_on(self, name: str, row: int) -> None:
        """Read up to the row, the first that is due, and take what is due of its batch."""
        if name != self._name or row < self._first:
            self._open(name, row)
        try:
            while row >= self._first + len(self._pictures):
                self._first, self._pictures = next(self._batches)
        except StopIteration:
            self._fail(name, math.inf, "failed:missing_file")
        except UNREADABLE:
            self._name = ""  # what lies behind the damage is read anew
            end = end_of_damage(self._files[name], self._first + len(self._pictures))
            self._fail(name, end, "failed:unreadable_file")
        else:
            for location, place in self._take_due(name, self._first + len(self._pictures)):
                self._read[location] = self._kept(self._pictures[place - self._first])

    def _kept(self, picture: pa.Scalar) -> pa.Scalar | IO[bytes] | Exception:
        """What is kept of a picture until it is asked for: a large one lies in a file."""
        if not picture.is_valid:
            return FetchFault("failed:missing_file")
        content = memoryview(picture.as_buffer())
        if len(content) > self._max_bytes:
            return FetchFault("failed:too_large")
        if len(content) <= IN_MEMORY_BYTES:
            return picture
        try:
            return gathered([content], len(content))
        except OSError as error:  # no room: a fault of this picture alone
            return error

    def _fail(self, name: str, end: float, fault: str) -> None:
        for location, _ in self._take_due(name, end):
            self._read[location] = FetchFault(fault)

    def _take_due(self, name: str, end: float) -> Iterator[tuple[str, int]]:
        """What is due next of a table, before row `end`; it is due no more."""
        while self._due:
            location, (table, row) = next(iter(self._due.items()))
            if table != name or row >= end:
                return
            del self._due[location]
            yield location, row

    def _open(self, name: str, row: int) -> None:
        self._name, self._first, self._pictures = name, row, pa.nulls(0)
        file = self._files[name]
        self._batches = (
            (first, _bytes_of(batch.column(0)))
            for first, batch in arrow_batches(file, [self._column], row)
        )


def _bytes_of(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
