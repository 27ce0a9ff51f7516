"""Held-out pictures that were trained on: under one uid, of equal pixels, or alike to the eye."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset
from pipeline.near_duplicates import NearDuplicateConfig, near_pairs
from pipeline.plan import plan_beside
from pipeline.schemas import HASHES, KEPT
from pipeline.shard import MANIFEST


@dataclass(frozen=True)
class Leaks:
    """Which of N held-out pictures were trained on; each is of one kind at most."""

    same_uid: np.ndarray
    """bool[N]: the same uid, so the same URL or path."""
    same_pixels: np.ndarray
    """bool[N]: none of that uid, but one whose pixels are equal."""
    alike: np.ndarray
    """bool[N]: none of those, but one whose hash and coarse colours are near."""

    @property
    def any(self) -> np.ndarray:
        """bool[N]"""
        return self.same_uid | self.same_pixels | self.alike


def find_leaks(held_out: pa.Table, trained: pa.Table, near: NearDuplicateConfig) -> Leaks:
    """Which held-out pictures were trained on, as curate finds what it leaves out.

    Args:
        held_out: `schemas.HASHES` of N pictures.
        trained: the same of those that were trained on.
        near: the bounds; of colours `leak_colours`, for a picture that was made brighter or grey is
            a leak too.
    """
    same_uid, same_pixels = (
        pc.is_in(held_out.column(name), trained.column(name).combine_chunks(), skip_nulls=True)
        .combine_chunks()
        .to_numpy(zero_copy_only=False)
        for name in ("uid", "pixels")
    )
    alike = _alike(held_out, trained, near)
    return Leaks(same_uid, same_pixels & ~same_uid, alike & ~same_pixels & ~same_uid)


def _alike(held_out: pa.Table, trained: pa.Table, near: NearDuplicateConfig) -> np.ndarray:
    """bool[N]: whose hash is near one that was trained on."""
    # Those held out come first, so that a crowd of one shape in training hides none of them.
    both = pa.concat_tables([held_out, trained]).select(["phash", "colours"])
    rows = np.flatnonzero(both.column("phash").is_valid().to_numpy())
    alike = np.zeros(held_out.num_rows, bool)
    if len(rows):
        found = both.take(pa.array(rows)).combine_chunks()
        hashes, colours = (
            np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(len(rows), -1)
            for column in found.columns
        )
        bounds = NearDuplicateConfig(near_bits=near.near_bits, near_colours=near.leak_colours)
        low, high = rows[near_pairs(hashes, colours, bounds)].T
        alike[low[(low < len(alike)) & (high >= len(alike))]] = True
    return alike


def hashes_beside(pairs: Dataset) -> pa.Table | None:
    """The hashes by which curate made `pairs`, in the order of its rows; None where they are gone.

    Returns:
        `schemas.HASHES`, a row for each of `pairs`.
    """
    plan = plan_beside(pairs)
    folder = pairs.folder / ".work" / "hashes"
    if plan is None or folder.size(MANIFEST) is None:
        return None
    hashes = Dataset.open(folder, "hashes")
    kept = plan.filter(pc.equal(plan.column("outcome"), KEPT))
    inputs, rows = (kept.column(name).to_numpy() for name in ("input_shard", "input_row"))
    order = np.argsort(inputs, kind="stable")
    parts = [HASHES.empty_table()]
    for number, part in _by_value(inputs[order]):
        wanted = pa.array(rows[order][part], pa.int64())
        parts.append(hashes.shard(number).table.take(wanted))
    found = pa.concat_tables(parts).take(pa.array(np.argsort(order), pa.int64()))
    uids = [shard.table.column("uid") for shard in pairs.shards()]
    own = pa.chunked_array(
        [chunk for its in uids for chunk in its.chunks], HASHES.field("uid").type
    )
    # Rows that were taken down between plan and output are in the plan alone.
    return found if found.column("uid").equals(own) else None


def _by_value(ascending: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each value of an ascending array, and where it stands."""
    starts = np.flatnonzero(np.diff(ascending, prepend=-1))
    ends = [*starts[1:].tolist(), len(ascending)]
    for start, end in zip(starts.tolist(), ends, strict=True):
        yield int(ascending[start]), slice(start, end)
