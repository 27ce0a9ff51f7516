"""Erasure: what a dataset holds of pictures taken down is removed, and their rows stay.

A shard that holds any is written anew beside the old one, all but the uid of those rows null. Then
dataset.json is replaced, which is the commit: it names the new files. The shards' records and the
removal of the old files follow; whoever is killed between runs the same command again. The
dataset's digest stays, because it covers the files as they were made.
"""

from collections import Counter
from collections.abc import Set
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.claim import claimed
from pipeline.dataset import Dataset, read_table
from pipeline.schemas import ROWS_PER_BATCH, UID
from pipeline.shard import MANIFEST, Erased, FileEntry, ShardRecord, ShardWriter, record_name
from pipeline.storage import Folder

_TRACES = ("url", "captions")
"""What a ledger holds of every picture."""

_LEDGER_KEEPS = {"uid", "source_row", "outcome"}


def erase(dataset: Dataset, uids: Set[bytes]) -> int:
    """Remove all that a dataset holds of these pictures but their uids; returns how many rows.

    Rows that are erased already stay so, and what a killed attempt left is tidied up.

    Raises:
        ConfigError: a job is writing there (it is named), the disk is full, or the folder cannot be
            written.
        DatasetError: a shard is missing or damaged.
    """
    folder = dataset.folder
    with claimed(folder, "viaduct takedown --erase") as claim:
        dataset = Dataset.open(folder)
        folder.sweep("ledger")
        before = dataset.manifest
        records = tuple(_erase_in_shard(dataset, record, uids) for record in before.records)
        claim.check()
        if records != before.records:
            folder.publish_json(MANIFEST, replace(before, records=records).to_json())
        for record in records:
            if folder.read_json(record_name(record.number)) != record.to_json():
                folder.publish_json(record_name(record.number), record.to_json())
        _remove_unnamed(folder, records)
    return sum(
        len(new.erased.rows) - (len(old.erased.rows) if old.erased else 0)
        for old, new in zip(before.records, records, strict=True)
        if new.erased
    )


def without_payload(table: pa.Table, rows: np.ndarray, spare: Set[str]) -> pa.Table:
    """The table with nulls in these rows of all columns but those in `spare`; nothing lies under
    the nulls."""
    gone = np.zeros(table.num_rows, bool)
    gone[rows] = True
    columns = [
        column if name in spare else _nulled(column, gone)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, schema=table.schema)


def _nulled(column: pa.ChunkedArray, gone: np.ndarray) -> pa.ChunkedArray:
    if not isinstance(column.type, pa.FixedShapeTensorType):
        return column.take(pa.array(np.arange(len(gone)), mask=gone))
    whole = pa.chunked_array([chunk.storage for chunk in column.chunks]).combine_chunks()
    values = whole.values.to_numpy().reshape(len(gone), -1).copy()
    values[gone] = 0
    mask = pa.array(gone | ~whole.is_valid().to_numpy(zero_copy_only=False))
    storage = pa.FixedSizeListArray.from_arrays(values.reshape(-1), type=whole.type, mask=mask)
    return pa.chunked_array([pa.ExtensionArray.from_storage(column.type, storage)])


def _erase_in_shard(dataset: Dataset, record: ShardRecord, uids: Set[bytes]) -> ShardRecord:
    """The record of the shard without these pictures; itself where it holds none."""
    shard = dataset.shard(record.number)
    earlier = record.erased or Erased(())
    rows = np.setdiff1d(_rows_of(shard.table, uids), earlier.rows)
    if "ledger" in record.attachments:
        record = _erase_in_ledger(dataset, record, uids)
    if not len(rows):
        return record
    captions = Counter(earlier.captions)
    if record.captions is not None:
        groups = shard.table.column("captions").take(pa.array(rows)).to_pylist()
        captions.update(caption["status"] for group in groups for caption in group or [])
    table = without_payload(shard.table, rows, {"uid"})
    size = dataset.manifest.rows_per_batch
    return replace(
        record,
        entry=_write(dataset.folder, record.number, record.entry, table, size),
        erased=Erased(tuple(sorted([*earlier.rows, *rows.tolist()])), dict(captions)),
    )


def _erase_in_ledger(dataset: Dataset, record: ShardRecord, uids: Set[bytes]) -> ShardRecord:
    """A ledger keeps uid, source row and outcome."""
    entry = record.attachments["ledger"]
    table = read_table(dataset.folder, entry.file)
    traces = pc.or_(*(table.column(name).is_valid() for name in _TRACES))
    rows = np.intersect1d(_rows_of(table, uids), np.flatnonzero(traces.to_numpy()))
    if not len(rows):
        return record
    table = without_payload(table, rows, _LEDGER_KEEPS)
    folder = dataset.folder / "ledger"
    entry = _write(folder, record.number, entry, table, ROWS_PER_BATCH["ledger"], "ledger/")
    return replace(record, attachments={**record.attachments, "ledger": entry})


def _rows_of(table: pa.Table, uids: Set[bytes]) -> np.ndarray:
    wanted = pa.array(sorted(uids), UID)
    return np.flatnonzero(pc.is_in(table.column("uid"), value_set=wanted).to_numpy())


def _write(
    folder: Folder, number: int, entry: FileEntry, table: pa.Table, size: int, prefix: str = ""
) -> FileEntry:
    """Publish a shard's new file beside the old one, with its digest in the name."""
    with folder.temporary() as file:
        writer = ShardWriter(file, table.schema, size)
        writer.write(table)
        writer.close()
        name = f"{number:05d}-{file.digest[:16]}.arrow"
        file.publish(name)
        made = entry.made or (entry.bytes, entry.digest)
        return replace(writer.entry(prefix + name), made=made)


def _remove_unnamed(folder: Folder, records: tuple[ShardRecord, ...]) -> None:
    """Remove the files of these shards that no record names any more."""
    named = {entry.file for record in records for entry in record.files}
    numbers = {f"{record.number:05d}" for record in records}
    for prefix in {file.rpartition("/")[0] for file in named}:
        home = folder / prefix if prefix else folder
        for file in home.files():
            stem = file.removesuffix(".arrow").partition("-")[0]
            path = f"{prefix}/{file}" if prefix else file
            if file.endswith(".arrow") and stem in numbers and path not in named:
                home.remove_file(file)
