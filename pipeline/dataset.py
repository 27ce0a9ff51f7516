"""A whole dataset: a folder of shards with their records and a manifest, opened for reading."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from PIL import Image

from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Parent
from pipeline.manifest import Manifest
from pipeline.pictures import decode_stored
from pipeline.schemas import describe
from pipeline.shard import MANIFEST, FileEntry, ShardRecord
from pipeline.shard_cache import CacheConfig, local_copy
from pipeline.storage import Folder
from pipeline.tombstones import live_mask, read_tombstones

DRAFT = ".draft.json"
"""What a job in progress means to make (`pipeline.draft`)."""


@dataclass(frozen=True)
class Shard:
    """A shard opened for reading; local ones are memory-mapped, so that rows cost no copy."""

    record: ShardRecord
    table: pa.Table
    """All rows, in order, those taken down too: a row never moves."""
    tombstones: frozenset[bytes]

    @property
    def live(self) -> pa.ChunkedArray:
        """bool[rows]: which rows are not taken down."""
        return live_mask(self.table.column("uid"), self.tombstones)


@dataclass(frozen=True)
class Dataset:
    """A whole dataset. Readers apply its tombstones and refuse another kind than they need."""

    folder: Folder
    manifest: Manifest
    tombstones: frozenset[bytes]
    cache: CacheConfig | None = None
    """Where whole shards are kept of a dataset that is not local; None reads it where it is."""

    @staticmethod
    def open(
        location: str | Folder, kind: str | None = None, cache: CacheConfig | None = None
    ) -> "Dataset":
        """Open a dataset.

        Args:
            location: path or URI of its folder.
            kind: the kind that is needed; None takes any.
            cache: for shards that are read often, such as those of features.

        Raises:
            ConfigError: there is none, it is not finished, or it is of another kind.
            DatasetError: dataset.json is damaged.
        """
        folder = location if isinstance(location, Folder) else Folder.at(location)
        value = folder.read_json(MANIFEST)
        if value is None:
            raise ConfigError(
                why_unpublished(folder, "dataset", MANIFEST, ", it goes on where it stopped")
            )
        manifest = Manifest.from_json(value, f"{folder}/{MANIFEST}")
        if kind is not None and manifest.kind != kind:
            raise ConfigError(f"{folder}: holds {manifest.kind!r}, but {kind!r} is needed")
        return Dataset(folder, manifest, read_tombstones(folder), cache)

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @cached_property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def as_parent(self) -> Parent:
        return Parent(self.kind, self.digest)

    @property
    def num_rows(self) -> int:
        return sum(record.entry.rows for record in self.manifest.records)

    @property
    def num_bytes(self) -> int:
        return sum(e.bytes for record in self.manifest.records for e in record.files)

    @cached_property
    def records(self) -> dict[int, ShardRecord]:
        """The shards' records by number; numbers set aside are absent."""
        return {record.number: record for record in self.manifest.records}

    @property
    def summary(self) -> str:
        """One line for people: how many pictures, what became of the others, the digest."""
        pictures = self.manifest.pictures
        dropped = " ".join(f"{reason}={count:,}" for reason, count in pictures.dropped.items())
        return (
            f"{self.kind}, {pictures.num_kept:,} of {pictures.num_in:,} pictures kept"
            + (f" ({dropped})" if dropped else "")
            + f", {len(self.records)} shards, digest {self.digest[:16]}"
        )

    def shard(
        self, number: int, *, verify: bool = False, columns: Sequence[str] | None = None
    ) -> Shard:
        """Open a shard.

        Args:
            number: of the shard.
            verify: read every byte first and compare digests.
            columns: those that are read of a shard that is not local, and are in the table of any;
                None takes all, through the cache if there is one.

        Raises:
            DatasetError: the shard is missing or damaged; it is named.
        """
        record = self.records.get(number)
        if record is None:
            raise DatasetError(f"{self.folder}: shard {number:05d} is not there (set aside)")
        if self.cache is not None and not self.folder.is_local and columns is None:
            table = _through(self.cache, self.folder, record.entry)  # compared as it is fetched
        else:
            for entry in record.files if verify else ():
                check_bytes(self.folder, entry.file, entry.bytes, entry.digest)
            table = read_table(self.folder, record.entry.file, columns)
        if columns is None:
            wanted = self.manifest.schema
        else:
            wanted = {name: self.manifest.schema[name] for name in table.schema.names}
        if describe(table.schema) != wanted or table.num_rows != record.entry.rows:
            raise DatasetError(f"{self.folder}/{record.entry.file}: is not what its record says")
        return Shard(record, table, self.tombstones)

    def attachment(self, number: int, name: str) -> pa.Table:
        """A table committed with a shard, such as the `ledger` of `raw`."""
        return read_table(self.folder, self.records[number].attachments[name].file)

    def shards(self) -> Iterator[Shard]:
        return (self.shard(number) for number in self.records)


def decode_row(shard: Shard, row: int) -> Image.Image:
    """The stored picture of one row of `raw` or `pairs`, as RGB.

    Raises:
        DatasetError: it cannot be decoded; it is named.
    """
    try:
        return decode_stored(shard.table.column("picture")[row].as_py())
    except OSError as error:
        uid = shard.table.column("uid")[row].as_py().hex()
        raise DatasetError(
            f"{shard.record.entry.file}: row {row}: picture {uid} cannot be decoded: {error}"
        ) from error


def read_table(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole IPC file as a table, memory-mapped where it is local.

    Args:
        folder, name: of the file.
        columns: those to read; None reads all.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    try:
        return folder.open_arrow(name, columns).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{folder}/{name}: cannot be read: {error}{_REBUILD}") from error


def _through(cache: CacheConfig, folder: Folder, entry: FileEntry) -> pa.Table:
    """A shard's table out of the cache; raises as `local_copy`, or DatasetError."""
    while True:
        try:
            name = local_copy(cache, folder, entry)
        except OSError as error:
            raise DatasetError(f"{folder}/{entry.file}: cannot be fetched: {error}") from error
        with contextlib.suppress(FileNotFoundError):  # evicted before it was opened
            return cache.folder.open_arrow(name).read_all()


def check_bytes(folder: Folder, name: str, num_bytes: int, digest: str) -> None:
    """Read a file whole and compare it with its record.

    Raises:
        DatasetError: it is missing, or of another length or digest.
    """
    size = folder.size(name)
    if size is None:
        raise DatasetError(f"{folder}/{name}: is missing{_REBUILD}")
    if size != num_bytes:
        raise DatasetError(f"{folder}/{name}: has {size} bytes, not {num_bytes}{_REBUILD}")
    found = folder.digest(name)
    if found != digest:
        raise DatasetError(
            f"{folder}/{name}: damaged: digest {found[:16]}, not {digest[:16]}{_REBUILD}"
        )


_REBUILD = "; remove it and run its job again to rebuild it"


def check_side_by_side(*datasets: Dataset) -> None:
    """Check that row i of shard k is the same picture in all datasets.

    Raises:
        ConfigError: they do not match; two that differ are named with the first difference.
    """
    first, *others = datasets
    for other in others:
        for number in sorted(first.records.keys() | other.records.keys()):
            a, b = first.records.get(number), other.records.get(number)
            if a is None or b is None or a.uid_digest != b.uid_digest:
                raise ConfigError(
                    f"{first.folder} and {other.folder} do not match: shard {number:05d} "
                    f"{_shard_difference(a, b)}"
                )


def _shard_difference(a: ShardRecord | None, b: ShardRecord | None) -> str:
    if a is None or b is None:
        return f"is only in the {'second' if a is None else 'first'}"
    if a.entry.rows != b.entry.rows:
        return f"has {a.entry.rows} rows and {b.entry.rows}"
    return "holds other pictures"


def why_unpublished(folder: Folder, kind: str, manifest: str, then: str = "") -> str:
    """Why nothing of a kind is published in a folder, as one line.

    Args:
        folder: without that manifest.
        kind: of what was looked for, for people.
        manifest: the file that is published last.
        then: said after the advice to run the job again.
    """
    if not folder.exists():
        return f"{folder}: no such folder"
    if folder.size(DRAFT) is not None:
        return f"{folder}: not finished; run its job again{then}"
    return f"{folder}: no {kind} (it has no {manifest})"
