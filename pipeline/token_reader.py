"""Image tokens out of feature shards: a row is copied once, from the mapped file into its batch."""

import ctypes
import math
import mmap
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


def gather(wanted: Sequence[tuple[ShardTokens, int]], out: np.ndarray) -> None:
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
        self.shard = lru_cache(OPEN_SHARDS)(self._open)
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


def has_tokens(shard: Shard) -> np.ndarray:
    """bool[rows]: which rows of a shard of `features` have tokens and are not taken down."""
    return np.asarray(shard.live) & np.asarray(shard.table.column("tokens").is_valid())
