"""Image tokens out of feature shards: a row is copied once, from the mapped file into its batch."""

import ctypes
import math
import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import Dataset, Shard
from pipeline.token_codes import Channels, decode

OPEN_SHARDS = 1024
"""Shards that are open at once: Linux gives a process 65,530 maps, and datasets may have more."""
_WILL_NEED = 3
"""MADV_WILLNEED of Linux and the BSDs; the standard library names it only where it has it."""
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class ShardTokens:
    """Image tokens of one shard of `features`, for rows that have any.

    Args:
        shard: memory-mapped where it is local.
        rows_per_batch: of its dataset.
    """

    def __init__(self, shard: Shard, rows_per_batch: int) -> None:
        column = shard.table.column("tokens")
        self.shape: tuple[int, ...] = tuple(column.type.shape)
        """[P, C]"""
        self._stored = _values(column)
        stored_as = np.dtype(column.type.value_type.to_pandas_dtype())
        self._is_coded = stored_as == np.int8
        if self._is_coded:
            self._scales = _values(shard.table.column("token_scales"))
            name = shard.record.entry.file
            self._channels = Channels.from_metadata(shard.table.schema.metadata, name)
        self.dtype: np.dtype[Any] = np.dtype(np.float16) if self._is_coded else stored_as
        """As it is read: float16, also for int8, or uint16, the bits of bfloat16."""
        self._rows_per_batch = rows_per_batch
        self._addresses = [stored.ctypes.data for stored in self._stored]
        self._row_bytes = math.prod(self.shape) * stored_as.itemsize

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """[B, P, C] of `dtype`, in memory of its own."""
        out = np.empty((len(rows), *self.shape), self.dtype)
        gather([(self, row) for row in rows], out)
        return out

    def copy(self, row: int, out: np.ndarray) -> None:
        """Write the tokens of a row into `out`, [P, C] of `dtype`."""
        batch, at = divmod(row, self._rows_per_batch)
        if self._is_coded:
            decode(self._stored[batch][at], self._scales[batch][at], self._channels, out)
        else:
            out[...] = self._stored[batch][at]

    def ask_for(self, row: int) -> None:
        """Have the kernel read a row from the disk meanwhile."""
        batch, at = divmod(row, self._rows_per_batch)
        begin = self._addresses[batch] + at * self._row_bytes
        ahead = begin % mmap.PAGESIZE
        _madvise(begin - ahead, self._row_bytes + ahead, _WILL_NEED)  # it may refuse: only advice


def _values(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Of each chunk of tensors its values; of one with nulls Arrow would make no array."""
    shape = tuple(column.type.shape)
    return [chunk.storage.values.to_numpy().reshape(len(chunk), *shape) for chunk in column.chunks]


Wanted = tuple[ShardTokens, int]
"""A shard's tokens, and a row in it."""


def gather(wanted: Sequence[Wanted], out: np.ndarray) -> None:
    """Copy rows of shards into a batch.

    The kernel is asked for all of them first, so that a disk reads them side by side: of files that
    were in no cache, 128 rows of 724 kB came at 1.2 to 1.9 GB/s, and without it at 0.2 at most.
    """
    for shard, row in wanted:
        shard.ask_for(row)
    for at, (shard, row) in enumerate(wanted):
        shard.copy(row, out[at])


class TokenReader:
    """Image tokens of a dataset of kind `features`, for rows that have any."""

    def __init__(self, features: Dataset) -> None:
        self._features = features
        self.shard = lru_cache(_num_open(features))(self._open)
        """A shard by its number, which stays open for a while; raises as `Dataset.shard`."""

    def gather(self, places: Sequence[tuple[int, int]], out: np.ndarray) -> None:
        """Copy rows into a batch.

        Args:
            places: shard and row of each.
            out: [B, P, C] of the shards' `dtype`.

        Raises:
            DatasetError: a shard is missing or damaged; it is named.
        """
        gather([(self.shard(number), row) for number, row in places], out)

    def read(self, places: Sequence[tuple[int, int]]) -> np.ndarray:
        """[B, P, C]: as `gather`, of one place at least, in memory of its own."""
        first = self.shard(places[0][0])
        out = np.empty((len(places), *first.shape), first.dtype)
        self.gather(places, out)
        return out

    def _open(self, number: int) -> ShardTokens:
        return ShardTokens(self._features.shard(number), self._features.manifest.rows_per_batch)


def _num_open(features: Dataset) -> int:
    """Shards to keep open: those that come through a cache, at most as many as it holds."""
    if features.cache is None or features.folder.is_local:
        return OPEN_SHARDS
    largest = max((record.entry.bytes for record in features.records.values()), default=1)
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torch: ranks of this machine
    return max(1, min(OPEN_SHARDS, features.cache.cache_bytes // (largest * sharing)))


class Presence:
    """Which rows of `features` have tokens, without fetching shards for it that are not local.

    Shards of as many rows and bytes have as many null rows, for these take bytes of their own: so
    where one of them has none, the others need no look.
    """

    def __init__(self, features: Dataset) -> None:
        self._features = features
        self._has_null = lru_cache(None)(self._look)
        self._like = {
            (record.entry.rows, record.entry.bytes): number
            for number, record in features.records.items()
        }

    def __call__(self, number: int) -> np.ndarray:
        """bool[rows] of a shard: as `has_tokens`."""
        features, record = self._features, self._features.records[number]
        if features.folder.is_local or record.erased is not None:
            return has_tokens(features.shard(number))
        if self._has_null(self._like[record.entry.rows, record.entry.bytes]):
            return has_tokens(features.shard(number))
        if not features.tombstones:
            return np.ones(record.entry.rows, bool)
        return np.asarray(features.shard(number, columns=["uid"]).live)

    def _look(self, number: int) -> bool:
        return bool(self._features.shard(number).table.column("tokens").null_count)


def has_tokens(shard: Shard) -> np.ndarray:
    """bool[rows]: which rows of a shard of `features` have tokens and are not taken down."""
    return np.asarray(shard.live) & np.asarray(shard.table.column("tokens").is_valid())
