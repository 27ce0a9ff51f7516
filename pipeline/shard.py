"""One shard: an Arrow IPC file and the JSON record that commits it.

The record is written last and names the file, so a shard without a valid record does not exist.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.accounting import Account
from pipeline.errors import DatasetError
from pipeline.storage import Folder, TemporaryFile

logger = logging.getLogger(__name__)

_COMMIT_LOCK = ".commit.lock"
_COMMIT_PATIENCE_S = 15.0
"""Much longer than another attempt at a shard takes to commit it, unless it was halted then."""

_READ_AT_ONCE = 16
"""Records."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a shard as its record tells it."""

    file: str
    """Name relative to the dataset's folder."""
    rows: int
    bytes: int
    digest: str
    """SHA-256 of the file, in hexadecimal, as `sha256sum` prints it."""
    made: tuple[int, str] | None = None
    """Bytes and digest as it was made, where rows were erased since (`pipeline.erasure`)."""

    def to_json(self) -> dict[str, Any]:
        value = {"file": self.file, "rows": self.rows, "bytes": self.bytes, "digest": self.digest}
        if self.made is None:
            return value
        return value | {"made": dict(zip(("bytes", "digest"), self.made, strict=True))}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "FileEntry":
        made = value.get("made")
        return FileEntry(
            str(value["file"]),
            int(value["rows"]),
            int(value["bytes"]),
            str(value["digest"]),
            None if made is None else (int(made["bytes"]), str(made["digest"])),
        )


@dataclass(frozen=True)
class Erased:
    """What was erased from a shard after it was made; its accounts are as they were."""

    rows: tuple[int, ...]
    """Ascending; all but their uid is null."""
    captions: Mapping[str, int] = field(default_factory=dict)
    """Status to the number of captions that went."""

    def to_json(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "captions": dict(sorted(self.captions.items()))}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Erased":
        return Erased(tuple(int(row) for row in value["rows"]), dict(value["captions"]))


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a committed shard; NNNNN.json holds it."""

    number: int
    entry: FileEntry
    uid_digest: str
    """SHA-256 of the uids in order: equal for datasets that lie side by side."""
    pictures: Account
    captions: Account | None = None
    """None where the dataset holds no captions."""
    attachments: Mapping[str, FileEntry] = field(default_factory=dict)
    """Further files committed with the shard, by name (the ledger of `raw`)."""
    erased: Erased | None = None

    @property
    def files(self) -> list[FileEntry]:
        return [self.entry, *self.attachments.values()]

    def to_json(self) -> dict[str, Any]:
        value = {
            "shard": self.number,
            **self.entry.to_json(),
            "uid_digest": self.uid_digest,
            "pictures": self.pictures.to_json(),
            "captions": self.captions.to_json() if self.captions else None,
            "attachments": {name: e.to_json() for name, e in sorted(self.attachments.items())},
        }
        return value if self.erased is None else value | {"erased": self.erased.to_json()}

    @staticmethod
    def from_json(value: Any, name: str) -> "ShardRecord":
        """Read a record.

        Args:
            value: the parsed JSON.
            name: of its file, for the error.

        Raises:
            DatasetError: a field is missing or wrong, or an account does not add up.
        """
        try:
            captions, erased = value["captions"], value.get("erased")
            record = ShardRecord(
                number=int(value["shard"]),
                entry=FileEntry.from_json(value),
                uid_digest=str(value["uid_digest"]),
                pictures=Account.from_json(value["pictures"]),
                captions=None if captions is None else Account.from_json(captions),
                attachments={
                    key: FileEntry.from_json(entry) for key, entry in value["attachments"].items()
                },
                erased=None if erased is None else Erased.from_json(erased),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{name}: field missing or wrong: {error}") from error
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from error
        if record.pictures.num_kept != record.entry.rows:
            raise DatasetError(
                f"{name}: pictures.kept={record.pictures.num_kept} but rows={record.entry.rows}"
            )
        return record


MANIFEST = "dataset.json"
"""Published last, with the records of all shards (`pipeline.manifest`)."""


def record_name(number: int) -> str:
    return f"{number:05d}.json"


def read_record(folder: Folder, number: int) -> ShardRecord | None:
    """A shard's record, or None where it or one of its files is absent or has another size.

    Raises:
        DatasetError: the record itself is damaged.
    """
    name = record_name(number)
    value = folder.read_json(name)
    if value is None:
        return None
    record = ShardRecord.from_json(value, f"{folder}/{name}")
    complete = all(folder.size(entry.file) == entry.bytes for entry in record.files)
    return record if complete else None


class ShardWriter:
    """Writes one IPC file with a fixed number of rows in each record batch but the last."""

    def __init__(self, file: TemporaryFile, schema: pa.Schema, rows_per_batch: int) -> None:
        self.file = file
        self.schema = schema
        self.rows_per_batch = rows_per_batch
        self.rows = 0
        self._uids = hashlib.sha256()
        self._pending = schema.empty_table()
        self._writer = pa.ipc.new_file(file.stream, schema)

    def write(self, table: pa.Table) -> None:
        """Append rows; `table` must have the shard's schema."""
        if not table.schema.equals(self.schema):
            raise DatasetError(f"rows of another schema: {table.schema.names}")
        self.rows += table.num_rows
        if "uid" in table.schema.names:  # a row may also be a caption
            for uid in table.column("uid").to_pylist():
                self._uids.update(uid)
        self._pending = pa.concat_tables([self._pending, table])
        while self._pending.num_rows >= self.rows_per_batch:
            self._flush()

    def close(self) -> None:
        """Write what is pending and the footer; nothing can be written after it."""
        if self._pending.num_rows:
            self._flush()
        self._writer.close()

    def entry(self, file: str) -> FileEntry:
        """What the record says of the closed file."""
        return FileEntry(file, self.rows, self.file.stream.bytes, self.file.digest)

    @property
    def uid_digest(self) -> str:
        return self._uids.hexdigest()

    def _flush(self) -> None:
        rows = self._pending.slice(0, self.rows_per_batch)
        # Taking the rows lays them out anew. A slice would write what lies around and under it
        # (the text before it, the value of a null), and equal rows would not be equal bytes.
        rows = rows.take(pa.array(range(rows.num_rows), pa.int64())).combine_chunks()
        self._writer.write_batch(rows.to_batches()[0])
        self._pending = self._pending.slice(self.rows_per_batch)


class ShardDraft:
    """A shard on its way: write its rows, attach further tables, then commit it as a whole."""

    def __init__(self, folder: Folder, number: int, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.number = number
        self._stack = stack
        self._writers: dict[str, ShardWriter] = {}

    def open(self, schema: pa.Schema, rows_per_batch: int, *, attachment: str = "") -> ShardWriter:
        """Begin the shard's own file, and then those of attachments, in subfolders so named."""
        home = self.folder / attachment if attachment else self.folder
        file = self._stack.enter_context(home.temporary())
        self._writers[attachment] = writer = ShardWriter(file, schema, rows_per_batch)
        return writer

    def commit(self, *, pictures: Account, captions: Account | None = None) -> ShardRecord:
        """Publish the files, then the record.

        Where another attempt has committed this shard already, that one stands.

        Raises:
            DatasetError: the other attempt wrote something else, or an account does not add up.
            ConfigError: the disk is full.
        """
        entries = {name: self._closed(name, writer) for name, writer in self._writers.items()}
        record = ShardRecord(
            number=self.number,
            entry=entries.pop(""),
            uid_digest=self._writers[""].uid_digest,
            pictures=pictures,
            captions=captions,
            attachments=entries,
        )
        # What cannot be read back is never written.
        ShardRecord.from_json(record.to_json(), record_name(self.number))
        with self.folder.locked_number(_COMMIT_LOCK, self.number, _COMMIT_PATIENCE_S) as alone:
            if not alone:  # as on an object store: both write the same bytes, or one did before
                logger.warning("shard=%05d: another attempt was halted in its commit", self.number)
            if _is_committed(self.folder, record):
                return record
            for writer, entry in zip(self._writers.values(), record.files, strict=True):
                writer.file.publish(entry.file.rpartition("/")[2])
            self.folder.publish_json(record_name(self.number), record.to_json())
        return record

    def _closed(self, attachment: str, writer: ShardWriter) -> FileEntry:
        writer.close()
        name = f"{self.number:05d}.arrow"
        if not self.folder.is_local:  # the digest in the name: no attempt overwrites another's
            name = f"{self.number:05d}-{writer.file.digest[:16]}.arrow"
        return writer.entry(f"{attachment}/{name}" if attachment else name)


@contextlib.contextmanager
def new_shard(folder: Folder, number: int) -> Iterator[ShardDraft]:
    """A shard to write and commit; whatever is not committed at the end vanishes."""
    with contextlib.ExitStack() as stack:
        yield ShardDraft(folder, number, stack)


def commit_table(
    folder: Folder,
    number: int,
    table: pa.Table,
    rows_per_batch: int,
    *,
    pictures: Account,
    captions: Account | None = None,
) -> ShardRecord:
    """Commit a shard whose rows are all at hand; raises as `ShardDraft.commit`."""
    with new_shard(folder, number) as shard:
        shard.open(table.schema, rows_per_batch).write(table)
        return shard.commit(pictures=pictures, captions=captions)


def committed(folder: Folder, number: int) -> ShardRecord | None:
    """The record of a shard that is here and whole; a damaged record counts as absent."""
    try:
        return read_record(folder, number)
    except DatasetError:
        return None


@dataclass(frozen=True)
class Commit:
    """A shard that is here and whole."""

    record: ShardRecord
    time_s: float
    """When its record was written, in seconds since 1970, by the clock of where it lies."""


def commits(folder: Folder) -> dict[int, Commit]:
    """The shards that are here and whole, by number: of listings and their records alone."""
    infos = folder.infos()
    names = [name for name in infos if name.endswith(".json") and name[:-5].isdigit()]
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:  # on an object store each is a request
        read = threads.map(partial(_record_or_none, folder), names)
        found = {name: record for name, record in zip(names, read, strict=True) if record}
    sizes = {name: info.size for name, info in infos.items()}
    for home in {entry.file.rpartition("/")[0] for r in found.values() for entry in r.files} - {""}:
        sizes |= {f"{home}/{name}": info.size for name, info in (folder / home).infos().items()}
    return {
        record.number: Commit(record, infos[name].mtime_ns / 1e9)
        for name, record in found.items()
        if all(sizes.get(entry.file) == entry.bytes for entry in record.files)
    }


def all_committed(folder: Folder) -> dict[int, ShardRecord]:
    """The records of the shards that are here and whole, by number."""
    return {number: commit.record for number, commit in commits(folder).items()}


def _record_or_none(folder: Folder, name: str) -> ShardRecord | None:
    """A record whose name was listed; a damaged one counts as absent."""
    try:
        return ShardRecord.from_json(json.loads(folder.read(name)), name)
    except (DatasetError, ValueError, FileNotFoundError):
        return None


def _is_committed(folder: Folder, record: ShardRecord) -> bool:
    """Whether another attempt has committed this very shard.

    Raises:
        DatasetError: something else is committed, or published, under its number.
    """
    earlier = committed(folder, record.number)
    there = [] if earlier is None else [earlier.to_json()]
    published = folder.read_json(MANIFEST)
    if published is not None:
        there += [shard for shard in published["shards"] if shard["shard"] == record.number]
    for other in there:
        if other != record.to_json():
            raise DatasetError(
                f"{folder}/{record_name(record.number)}: two attempts at this shard disagree: "
                f"digest {other['digest'][:16]} is there, {record.entry.digest[:16]} came now"
            )
    return earlier is not None
