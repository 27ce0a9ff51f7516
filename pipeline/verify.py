"""Verification: every byte of a dataset against every record."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.accounting import Account
from pipeline.captions import in_a_line
from pipeline.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.schemas import KEPT, UID
from pipeline.shard import Erased, ShardRecord, read_record

_SCORED = ("candidates", "captions")
_UNIQUE = ("pairs", *_SCORED)


def verify(dataset: Dataset) -> Iterator[str]:
    """Read a dataset whole and yield one line for each thing that is wrong; none if it is whole.

    Checked for each shard: its record equals what dataset.json says of it, its files have the
    bytes and the digests recorded, its schema and batches are the dataset's, its uids give the
    recorded digest, its captions have known statuses that add up, and their scores are numbers. For
    all shards: the accounts add up to the dataset's, and in `pairs` and in captions beside them no
    uid is there twice.
    """
    seen: Counter[bytes] = Counter()
    for number, record in dataset.records.items():
        try:
            uids = _verify_shard(dataset, number, record)
        except DatasetError as error:
            yield str(error)
            continue
        if dataset.kind in _UNIQUE:
            seen.update(uids)
    yield from _verify_totals(dataset)
    for uid, count in seen.items():
        if count > 1:
            yield f"{dataset.folder}: uid {uid.hex()} is there {count} times"


def _verify_shard(dataset: Dataset, number: int, record: ShardRecord) -> list[bytes]:
    """The shard's uids; raises DatasetError with the first thing that is wrong."""
    shard = dataset.shard(number, verify=True)  # bytes, digests, schema, rows
    name = f"{dataset.folder}/{record.entry.file}"
    beside = read_record(dataset.folder, number)
    if beside is None or beside.to_json() != record.to_json():
        raise DatasetError(f"{dataset.folder}: the record of shard {number:05d} is not its own")
    _verify_batches(dataset, record, name)
    uids = shard.table.column("uid").to_pylist()
    if any(uid is None or len(uid) != UID.byte_width for uid in uids):
        raise DatasetError(f"{name}: a uid is missing")
    if hashlib.sha256(b"".join(uids)).hexdigest() != record.uid_digest:
        raise DatasetError(f"{name}: its uids are not those of its record")
    if record.captions is not None:
        _verify_captions(shard.table, record, record.captions, name)
    if dataset.kind in _SCORED:
        _verify_scores(shard.table, name)
    if record.erased is not None:
        _verify_erased(shard.table, record.erased, name)
    return uids


def _verify_batches(dataset: Dataset, record: ShardRecord, name: str) -> None:
    """All record batches but the last have the same number of rows, as row arithmetic needs."""
    reader = dataset.folder.open_arrow(record.entry.file)
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    full = dataset.manifest.rows_per_batch
    if any(size != full for size in sizes[:-1]) or any(size > full for size in sizes[-1:]):
        raise DatasetError(f"{name}: record batches of {sorted(set(sizes))} rows, not {full}")


def _verify_erased(table: pa.Table, erased: Erased, name: str) -> None:
    """Of the rows that were erased nothing is left but the uid."""
    rest = table.take(pa.array(erased.rows, pa.int64())).drop_columns(["uid"])
    left = [column for column in rest.column_names if rest[column].null_count < rest.num_rows]
    if left:
        raise DatasetError(f"{name}: rows that were erased still have {', '.join(left)}")


def _verify_captions(table: pa.Table, record: ShardRecord, account: Account, name: str) -> None:
    """Kept and rejected captions are as many as recorded, with those erased."""
    column = table.column("captions")
    groups = [group or [] for group in column.to_pylist()]
    if pa.types.is_string(column.type.value_type):  # a source's captions are not judged yet
        found = Counter({KEPT: sum(map(len, groups))})
    else:
        found = Counter(caption["status"] for group in groups for caption in group)
    if record.erased is not None:
        found.update(record.erased.captions)
    recorded = Counter({KEPT: account.num_kept})
    recorded.update({k: v for k, v in account.dropped.items() if k.startswith("rejected:")})
    if +found != +recorded:
        raise DatasetError(f"{name}: captions are {dict(found)}, recorded {dict(recorded)}")


def _verify_scores(table: pa.Table, name: str) -> None:
    """Each score is of a judge, its similarity finite, its match probability one or null."""
    captions, row = in_a_line(table["captions"])
    lists = pc.struct_field(captions, "scores")
    scores = pc.list_flatten(lists)
    itc, itm = (pc.struct_field(scores, name) for name in ("itc", "itm"))
    similarity = itc.to_numpy(zero_copy_only=False)  # null is NaN
    probability = itm.fill_null(0).to_numpy()
    right = np.isfinite(similarity) & (probability >= 0) & (probability <= 1)
    right &= pc.struct_field(scores, "judge").is_valid().to_numpy(zero_copy_only=False)
    for at in np.flatnonzero(~right)[:1].tolist():
        uid = table["uid"][row[pc.list_parent_indices(lists)[at].as_py()]].as_py().hex()
        raise DatasetError(f"{name}: picture {uid}: a caption's score is {scores[at].as_py()}")


def _verify_totals(dataset: Dataset) -> Iterator[str]:
    """The dataset's accounts hold at least those of its shards (a plan may leave out more)."""
    manifest = dataset.manifest
    pairs = [
        ("pictures", manifest.pictures, [r.pictures for r in manifest.records]),
        ("captions", manifest.captions, [r.captions for r in manifest.records if r.captions]),
    ]
    for what, total, parts in pairs:
        if total is None:
            continue
        summed = Account.total(parts)
        if summed.num_kept != total.num_kept or any(
            total.dropped.get(reason, 0) < count for reason, count in summed.dropped.items()
        ):
            yield f"{dataset.folder}: {what} of the shards do not add up to the dataset's"
