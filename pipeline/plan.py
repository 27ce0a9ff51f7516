"""The second phase of curate: which picture goes where. Works on columns of hashes alone.

Its memory is some 370 bytes a picture, the hashes included, whatever the pictures weigh.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.near_duplicates import NearDuplicateConfig, chains, near_pairs, stars
from pipeline.schemas import HASHES, KEPT, PLAN, TAKEN_DOWN
from pipeline.shard import MANIFEST

EVALUATION_LEAK = "evaluation_leak"
"""The outcome of a picture that is, or is alike to, one of an evaluation set."""


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


def make_plan(
    hashes: pa.Table,
    input_shards: np.ndarray,
    config: PlanConfig,
    near: NearDuplicateConfig,
    evaluation: pa.Table | None = None,
) -> pa.Table:
    """Unite pictures that are alike and spread what is left evenly over shards, in their order.

    A picture is equal to another if their decoded pixels are, and alike as `near` says. The best
    is the largest original, among equals the first. Of equal pictures the best is kept; of those
    that are alike, from the best down, each goes to the first kept one that it is itself alike to,
    or is kept. Their captions go with them. Whatever hangs together, through however many others,
    is one cluster. Where two different pictures claim one uid (two folders with the same paths, or
    a URL fetched twice that changed meanwhile), the first keeps it.

    Args:
        hashes: `schemas.HASHES`, all inputs after one another.
        input_shards: int[N], number of the input shard of each row; ascending.
        config: see there.
        near: see there.
        evaluation: `schemas.HASHES` of pictures that are not to be trained on.

    Returns:
        `schemas.PLAN`. Outcomes: `kept`; `duplicate` and `near_duplicate` (go with the kept one of
        the same output row); and without an output row `uid_taken`, `taken_down` and
        `evaluation_leak`.
    """
    held_out = HASHES.empty_table() if evaluation is None else evaluation
    table = pa.concat_tables([held_out, hashes])
    is_held_out = np.arange(table.num_rows) < held_out.num_rows
    pixels = _codes(table.column("pixels"))
    live = pixels >= 0
    taken = live & ~is_held_out
    taken &= _taken(_codes(table.column("uid")), pixels, taken)
    claims = np.flatnonzero(live & ~taken)

    # Distinct pictures, the best first; those held out before all others, that they are met.
    size = np.where(is_held_out, np.iinfo(np.int64).max, _numpy(table, "original_pixels"))
    distinct = _best_of_each(pixels[claims], size[claims], claims)
    distinct = distinct[np.lexsort((distinct, -size[distinct]))]
    leaks = is_held_out[distinct]
    if held_out.num_rows:  # stricter than for uniting: a leak that stays costs more than a picture
        met = _alike(table, distinct, replace(near, near_colours=near.leak_colours))
        leaks[met[leaks[met[:, 0]], 1]] = True
    alike = _alike(table, distinct, near)
    alike = alike[~leaks[alike].any(axis=1)]
    unites = near.near_duplicates == "unite"
    kept_for = distinct[stars(len(distinct), alike if unites else alike[:0])]
    best_of_cluster = distinct[chains(len(distinct), alike)]

    of_pixels = np.full(pixels.max(initial=-1) + 2, -1)  # number among the distinct; -1 has none
    of_pixels[pixels[distinct]] = np.arange(len(distinct))
    number = np.where(live & ~taken, of_pixels[pixels], -1)
    leaked = (number >= 0) & np.append(leaks, False)[number]
    goes_with = np.where(leaked, -1, np.append(kept_for, -1)[number])
    outcome = np.full(len(table), TAKEN_DOWN, dtype=object)
    outcome[taken] = "uid_taken"
    outcome[leaked] = EVALUATION_LEAK
    outcome[goes_with >= 0] = "near_duplicate"
    outcome[(goes_with >= 0) & (pixels == pixels[goes_with])] = "duplicate"
    outcome[goes_with == np.arange(len(table))] = KEPT
    best = pa.array(np.append(best_of_cluster, -1)[number], mask=number < 0)
    cluster = table.column("pixels").take(best)

    first = held_out.num_rows  # the held out were only there to be met
    mine = hashes.append_column("cluster", cluster.slice(first)).append_column(
        "outcome", pa.array(outcome[first:], pa.string())
    )
    return _laid_out(mine, input_shards, np.maximum(goes_with[first:] - first, -1), config)


def _alike(table: pa.Table, rows: np.ndarray, near: NearDuplicateConfig) -> np.ndarray:
    """int64[M, 2]: pairs of near-duplicates among these rows, by their places in `rows`."""
    if near.near_duplicates == "ignore":
        return np.zeros((0, 2), np.int64)
    places = np.flatnonzero(table.column("phash").is_valid().to_numpy()[rows])
    if not len(places):
        return np.zeros((0, 2), np.int64)
    hashes, colours = (_bytes(table.column(name), rows[places]) for name in ("phash", "colours"))
    return places[near_pairs(hashes, colours, near)]


def _bytes(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """uint8[len(rows), width] of a column of fixed width; there is at least one row."""
    taken = column.take(pa.array(rows)).combine_chunks()
    return np.frombuffer(taken.buffers()[1], np.uint8).reshape(len(rows), -1)


def _laid_out(
    rows: pa.Table, input_shards: np.ndarray, goes_with: np.ndarray, config: PlanConfig
) -> pa.Table:
    """The plan of rows whose outcomes are known.

    Args:
        rows: `schemas.HASHES` with `cluster` and `outcome`.
        input_shards: as of `make_plan`.
        goes_with: int[N], the row of the kept picture of each, itself if it is kept, or -1.
        config: see there.
    """
    number = np.arange(rows.num_rows)
    kept = np.flatnonzero(goes_with == number)
    shard, row = _spread(_numpy(rows, "stored_bytes")[kept], config)
    place = np.full(rows.num_rows + 1, -1)  # kept pictures in output order
    place[kept] = np.arange(len(kept))
    place = place[goes_with]
    order = np.lexsort((number, goes_with != number, np.where(place < 0, len(kept), place)))
    placed = place[order]
    nowhere = placed < 0
    columns = {
        "output_shard": pa.array(np.append(shard, -1)[placed], pa.int32(), mask=nowhere),
        "output_row": pa.array(np.append(row, -1)[placed], pa.int32(), mask=nowhere),
        "input_shard": pa.array(input_shards[order], pa.int32()),
        "input_row": pa.array(_row_in_shard(input_shards)[order], pa.int32()),
    }
    return pa.table(
        [columns[n] if n in columns else rows.column(n).take(pa.array(order)) for n in PLAN.names],
        schema=PLAN,
    )


def plan_beside(pairs: Dataset) -> pa.Table | None:
    """The plan by which curate made `pairs`, of all the inputs' rows; None where it is gone."""
    folder = pairs.folder / ".work" / "plan"
    if folder.size(MANIFEST) is None:
        return None
    return Dataset.open(folder, "plan").shard(0).table


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
