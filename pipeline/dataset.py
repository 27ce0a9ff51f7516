"""A dataset: a folder of shards, their records, and dataset.json, which is published last.

`Draft` is a dataset while a job fills it; `Dataset` is one that is whole. docs/data-format.md
specifies the files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.accounting import Account
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage, Parent, canonical_digest
from pipeline.pictures import decode_stored
from pipeline.schemas import ROWS_PER_BATCH, describe
from pipeline.shard import ShardRecord, read_record
from pipeline.storage import Folder
from pipeline.tombstones import live_mask, read_tombstones

FORMAT = "viaduct/1"
MANIFEST = "dataset.json"
DRAFT = ".draft.json"
"""What a job in progress means to make: it refuses to go on with another configuration."""


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    kind: str
    schema: Mapping[str, str]
    """Column names to type names."""
    rows_per_batch: int
    records: tuple[ShardRecord, ...]
    set_aside: Mapping[int, int]
    """Shards that could not be made: number to rows that came in."""
    pictures: Account
    captions: Account | None
    lineage: Lineage

    @property
    def digest(self) -> str:
        """Covers schema, shards, accounts and lineage; no times, hosts, paths or attempts.

        Files are covered by their digests, not their names.
        """
        content = self._content()
        for shard in content["shards"]:
            for entry in (shard, *shard["attachments"].values()):
                del entry["file"]
        return canonical_digest(content)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "digest": self.digest, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "schema": dict(self.schema),
            "rows": sum(record.entry.rows for record in self.records),
            "rows_per_batch": self.rows_per_batch,
            "pictures": self.pictures.to_json(),
            "captions": self.captions.to_json() if self.captions else None,
            "set_aside": {str(number): rows for number, rows in sorted(self.set_aside.items())},
            "lineage": self.lineage.to_json(),
            "shards": [record.to_json() for record in self.records],
        }

    @staticmethod
    def from_json(value: Any, name: str) -> "Manifest":
        """Read dataset.json.

        Raises:
            DatasetError: it is damaged, or of a later format.
        """
        try:
            if value["format"] != FORMAT:
                raise DatasetError(f"{name}: format={value['format']!r}, this reads {FORMAT!r}")
            captions = value["captions"]
            manifest = Manifest(
                kind=value["kind"],
                schema=value["schema"],
                rows_per_batch=int(value["rows_per_batch"]),
                records=tuple(ShardRecord.from_json(shard, name) for shard in value["shards"]),
                set_aside={int(number): rows for number, rows in value["set_aside"].items()},
                pictures=Account.from_json(value["pictures"]),
                captions=None if captions is None else Account.from_json(captions),
                lineage=Lineage.from_json(value["lineage"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{name}: field missing or wrong: {error}") from error
        if manifest.digest != value.get("digest"):
            raise DatasetError(f"{name}: its digest is not that of its content")
        return manifest


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

    @staticmethod
    def open(location: str | Folder, kind: str | None = None) -> "Dataset":
        """Open a dataset.

        Args:
            location: path or URI of its folder.
            kind: the kind that is needed; None takes any.

        Raises:
            ConfigError: there is none, it is not finished, or it is of another kind.
            DatasetError: dataset.json is damaged.
        """
        folder = location if isinstance(location, Folder) else Folder.at(location)
        value = _read_json(folder, MANIFEST)
        if value is None:
            raise ConfigError(_why_no_dataset(folder))
        manifest = Manifest.from_json(value, f"{folder}/{MANIFEST}")
        if kind is not None and manifest.kind != kind:
            raise ConfigError(f"{folder}: holds {manifest.kind!r}, but {kind!r} is needed")
        return Dataset(folder, manifest, read_tombstones(folder))

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

    def shard(self, number: int, *, verify: bool = False) -> Shard:
        """Open a shard.

        Args:
            number: of the shard.
            verify: read every byte first and compare digests.

        Raises:
            DatasetError: the shard is missing or damaged; it is named.
        """
        record = self.records.get(number)
        if record is None:
            raise DatasetError(f"{self.folder}: shard {number:05d} is not there (set aside)")
        if verify:
            for entry in record.files:
                check_bytes(self.folder, entry.file, entry.bytes, entry.digest)
        table = read_table(self.folder, record.entry.file)
        found = describe(table.schema)
        if found != self.manifest.schema or table.num_rows != record.entry.rows:
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


def read_table(folder: Folder, name: str) -> pa.Table:
    """A whole IPC file as a table, memory-mapped where it is local.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    try:
        return folder.open_arrow(name).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{folder}/{name}: cannot be read: {error}{_REBUILD}") from error


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


@dataclass(frozen=True)
class Draft:
    """A dataset that a job is filling; killed and begun again, it keeps what is committed."""

    folder: Folder
    kind: str
    schema: pa.Schema
    lineage: Lineage

    @staticmethod
    def begin(folder: Folder, kind: str, schema: pa.Schema, lineage: Lineage) -> "Draft":
        """Begin a dataset, or go on with one that the same job began here.

        Raises:
            ConfigError: the folder holds something else, or what another configuration began;
                the first difference is named.
        """
        draft = Draft(folder, kind, schema, lineage)
        there = _read_json(folder, MANIFEST) or _read_json(folder, DRAFT)
        if there is None:
            others = [name for name in folder.files() if not name.startswith(".")]
            if others:
                raise ConfigError(f"{folder}: holds {others[0]} and no dataset; choose another")
            folder.create()
            folder.publish_json(DRAFT, draft._intent())
            return draft
        if there["kind"] != kind:
            raise ConfigError(f"{folder}: holds {there['kind']!r}, not {kind!r}; choose another")
        if difference := Lineage.from_json(there["lineage"]).difference(lineage):
            raise ConfigError(f"{folder}: was begun otherwise ({difference}); choose another")
        return draft

    @property
    def rows_per_batch(self) -> int:
        return ROWS_PER_BATCH[self.kind]

    def committed(self) -> dict[int, ShardRecord]:
        """The records of the shards that are here and whole, by number.

        A shard with a damaged record counts as absent and is made again.
        """
        found = {}
        for name in self.folder.files():
            stem = name.removesuffix(".json")
            if name.endswith(".json") and stem.isdigit():
                try:
                    record = read_record(self.folder, int(stem))
                except DatasetError:
                    self.folder.remove_file(name)
                    continue
                if record is not None:
                    found[record.number] = record
        return found

    def published(self) -> Dataset | None:
        """The dataset if it is published, whether or not all its files are still there."""
        return Dataset.open(self.folder) if self.folder.size(MANIFEST) is not None else None

    def whole(self) -> Dataset | None:
        """The dataset if it is published and all its files are there: nothing is left to do."""
        published = self.published()
        if published is None or published.records.keys() - self.committed().keys():
            return None
        return published

    def publish(
        self,
        records: Iterable[ShardRecord],
        *,
        set_aside: Mapping[int, int] | None = None,
        pictures: Sequence[Account] = (),
        captions: Sequence[Account] = (),
    ) -> Dataset:
        """Write dataset.json, after which the dataset is whole and never changes.

        Args:
            records: of all shards.
            set_aside: shards that could not be made: number to rows that came in.
            pictures, captions: what belongs to no shard, such as rows left out by a plan.

        Raises:
            DatasetError: it was published before with other shards.
        """
        records = tuple(sorted(records, key=lambda record: record.number))
        set_aside = dict(set_aside or {})
        lost = Account.all_dropped({"set_aside": sum(set_aside.values())} if set_aside else {})
        has_captions = "captions" in self.schema.names
        caption_accounts = [r.captions for r in records if r.captions is not None]
        manifest = Manifest(
            kind=self.kind,
            schema=describe(self.schema),
            rows_per_batch=self.rows_per_batch,
            records=records,
            set_aside=set_aside,
            pictures=Account.total([*(r.pictures for r in records), lost, *pictures]),
            captions=Account.total([*caption_accounts, *captions]) if has_captions else None,
            lineage=self.lineage,
        )
        earlier = self.published()
        if earlier is not None and earlier.digest != manifest.digest:
            raise DatasetError(
                f"{self.folder}: was rebuilt otherwise: digest {earlier.digest[:16]} is published, "
                f"{manifest.digest[:16]} came now"
            )
        self.folder.publish_json(MANIFEST, manifest.to_json())
        self.folder.remove_file(DRAFT)
        self.folder.sweep()
        return Dataset.open(self.folder)

    def _intent(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "schema": describe(self.schema),
            "lineage": self.lineage.to_json(),
        }


def _read_json(folder: Folder, name: str) -> Any:
    try:
        return folder.read_json(name)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{folder}/{name}: not JSON: {error}") from error


def _why_no_dataset(folder: Folder) -> str:
    if not folder.exists():
        return f"{folder}: no such folder"
    if folder.size(DRAFT) is not None:
        return f"{folder}: not finished; run its job again, it goes on where it stopped"
    return f"{folder}: no dataset (it has no {MANIFEST})"
