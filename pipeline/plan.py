"""The second phase of curate: which picture goes where. Works on columns of hashes alone.

Its memory is some 400 bytes a picture, whatever the pictures weigh.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.accounting import Account
from pipeline.errors import ConfigError
from pipeline.schemas import KEPT, PLAN, TAKEN_DOWN


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How the pictures are spread over shards."""

    shard_rows: int = 1024
    """Pictures a shard at most."""

    shard_bytes: int = 512 << 20
    """Bytes of stored pictures a shard at most; one larger picture is a shard of its own."""

    def __post_init__(self) -> None:
        for name in ("shard_rows", "shard_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")


def make_plan(hashes: pa.Table, input_shards: np.ndarray, config: PlanConfig) -> pa.Table:
    """Unite equal pictures and spread what is left evenly over shards, in the inputs' order.

    A picture is equal to another if their decoded pixels are. Of equal ones the largest original
    is kept, among equals the first; its captions and theirs are united. Where two different
    pictures claim one uid (two folders with the same paths, or a URL fetched twice that changed
    meanwhile), the first keeps it.

    Args:
        hashes: `schemas.HASHES`, all inputs after one another.
        input_shards: int[N], number of the input shard of each row; ascending.
        config: see there.

    Returns:
        `schemas.PLAN`. Outcomes: `kept`, `duplicate` (goes with the kept one of the same output
        row), and without an output row `uid_taken` and `taken_down`.
    """
    pixels = _codes(hashes.column("pixels"))
    live = pixels >= 0
    taken = live & _taken(_codes(hashes.column("uid")), pixels, live)
    alive = np.flatnonzero(live & ~taken)
    kept = _best_of_each(pixels[alive], _numpy(hashes, "original_pixels")[alive], alive)
    shard, row = _spread(_numpy(hashes, "stored_bytes")[kept], config)

    place = np.full(hashes.num_rows, -1)  # kept pictures in output order
    place[kept] = np.arange(len(kept))
    place_of_pixels = np.full(pixels.max(initial=-1) + 2, -1)
    place_of_pixels[pixels[kept]] = place[kept]
    united = np.where(live & ~taken, place_of_pixels[pixels], -1)

    is_kept = place >= 0
    number = np.arange(hashes.num_rows)
    order = np.lexsort((number, ~is_kept, np.where(united < 0, len(kept), united)))
    outcome = np.where(
        is_kept, KEPT, np.where(united >= 0, "duplicate", np.where(taken, "uid_taken", TAKEN_DOWN))
    )
    placed = united[order]
    nowhere = placed < 0
    return pa.table(
        {
            "uid": hashes.column("uid").take(order),
            "pixels": hashes.column("pixels").take(order),
            "output_shard": pa.array(np.append(shard, -1)[placed], pa.int32(), mask=nowhere),
            "output_row": pa.array(np.append(row, -1)[placed], pa.int32(), mask=nowhere),
            "input_shard": pa.array(input_shards[order], pa.int32()),
            "input_row": pa.array(_row_in_shard(input_shards)[order], pa.int32()),
            "num_captions": hashes.column("num_captions").take(order),
            "outcome": pa.array(outcome[order].tolist(), pa.string()),
        },
        schema=PLAN,
    )


def rows_of_shard(plan: pa.Table, output_shard: int) -> pa.Table:
    """The plan's rows for one output shard, found by bisection: no scan of the whole plan."""
    column = plan.column("output_shard")
    end = plan.num_rows - column.null_count

    def number(row: int) -> int:
        return column[row].as_py()

    first = bisect_left(range(end), output_shard, key=number)
    last = bisect_left(range(end), output_shard + 1, key=number)
    return plan.slice(first, last - first)


def left_out(plan: pa.Table) -> tuple[Account, Account]:
    """Pictures and captions of the plan's rows that go to no output shard, all dropped."""
    rows = plan.slice(plan.num_rows - plan.column("output_shard").null_count)
    outcomes = rows.column("outcome").to_pylist()
    captions: Counter[str] = Counter()
    for outcome, count in zip(outcomes, rows.column("num_captions").to_pylist(), strict=True):
        captions[f"picture:{outcome}"] += count
    return Account.of(outcomes), Account.all_dropped(captions)


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().to_numpy(zero_copy_only=False)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """int64[N]: equal values have equal codes, counted from 0 by first appearance; null is -1."""
    encoded = column.combine_chunks().dictionary_encode()
    return pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)


def _taken(uids: np.ndarray, pixels: np.ndarray, live: np.ndarray) -> np.ndarray:
    """bool[N]: the uid's first live row shows another picture."""
    rows = np.flatnonzero(live)
    first = np.full(uids.max(initial=-1) + 1, -1)
    first[uids[rows][::-1]] = rows[::-1]  # the last assignment, the first row, stays
    return pixels != pixels[first[uids]]


def _best_of_each(pixels: np.ndarray, original_pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The row to keep of each group of equal `pixels`, in ascending order."""
    order = np.lexsort((rows, -original_pixels, pixels))
    grouped = pixels[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = grouped[1:] != grouped[:-1]
    return np.sort(rows[order[first]])


def _row_in_shard(shards: np.ndarray) -> np.ndarray:
    """int[N]: each row's number within its shard, for ascending shard numbers."""
    starts = np.searchsorted(shards, shards, side="left")
    return np.arange(len(shards)) - starts


def _spread(num_bytes: np.ndarray, config: PlanConfig) -> tuple[np.ndarray, np.ndarray]:
    """Shards of even size that respect both bounds, as few as can be.

    Returns:
        int[N] number of the shard and int[N] row within it, for rows in output order.
    """
    total = len(num_bytes)
    if not total:
        return np.zeros(0, int), np.zeros(0, int)
    sums = np.cumsum(num_bytes)
    num_shards = len(_filled(sums, config.shard_rows, config.shard_bytes))
    starts = np.arange(num_shards) * total // num_shards
    if np.add.reduceat(num_bytes, starts).max() > config.shard_bytes:
        # Large pictures stand together: the smallest bound on rows that needs no more shards.
        rows = 1 + bisect_left(
            range(1, config.shard_rows),
            True,
            key=lambda rows: len(_filled(sums, rows, config.shard_bytes)) <= num_shards,
        )
        starts = np.array(_filled(sums, rows, config.shard_bytes))
    shard = np.searchsorted(starts, np.arange(total), side="right") - 1
    return shard, np.arange(total) - starts[shard]


def _filled(sums: np.ndarray, rows: int, num_bytes: int) -> list[int]:
    """First rows of shards that are filled one after the other, each up to both bounds.

    Args:
        sums: int[N], bytes of all rows up to and with this one.
    """
    starts = [0]
    while True:
        start = starts[-1]
        before = sums[start - 1] if start else 0
        end = min(start + rows, int(np.searchsorted(sums, before + num_bytes, side="right")))
        end = max(end, start + 1)
        if end >= len(sums):
            return starts
        starts.append(end)
