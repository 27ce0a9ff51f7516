"""Feature shards: pictures on their way to the encoder, its tokens on their way into a shard."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import Shard, decode_row
from pipeline.token_codes import Channels, check_range, encode

_AHEAD = 2
"""Batches that are being made while one is used."""


def batches(
    shard: Shard, batch_size: int, prepare: Callable[[Any, bytes], Any], threads: ThreadPoolExecutor
) -> Iterator[tuple[range, list[Any]]]:
    """Rows and prepared pictures of one batch after another, the next ones being made meanwhile.

    The first ones are begun at once, before any is asked for. Batches never cross a shard, so that
    its features do not depend on its neighbours.

    Args:
        shard: of `pairs`.
        batch_size: rows a batch.
        prepare: PIL picture (RGB) and its uid to what the encoder takes.
        threads: decode and prepare in them.

    Yields:
        The batch's rows, and for each its prepared picture, or None where it was taken down.

    Raises:
        DatasetError: a picture cannot be decoded; it is named.
    """
    live = shard.live.to_pylist()
    uids = shard.table.column("uid")

    def one(row: int) -> Any:
        return prepare(decode_row(shard, row), uids[row].as_py()) if live[row] else None

    def submit(rows: range) -> tuple[range, list[Future[Any]]]:
        return rows, [threads.submit(one, row) for row in rows]

    num_rows = shard.table.num_rows
    parts = (range(at, min(at + batch_size, num_rows)) for at in range(0, num_rows, batch_size))
    coming = deque(map(submit, islice(parts, _AHEAD)))

    def made() -> Iterator[tuple[range, list[Any]]]:
        while coming:
            rows, futures = coming.popleft()
            pictures = [future.result() for future in futures]
            coming.extend(map(submit, islice(parts, 1)))
            yield rows, pictures

    return made()


def token_columns(
    tokens: np.ndarray,
    present: Sequence[bool],
    uids: Sequence[bytes],
    dtype: str,
    channels: Channels | None = None,
) -> dict[str, pa.Array]:
    """Image tokens as the columns of a feature shard that follow the uid.

    Args:
        tokens: float32[N, P, C] of the pictures that are present, in order.
        present: for each row, whether it has a picture; the others become null.
        uids: of all rows, for the error.
        dtype: a key of `schemas.TOKEN_DTYPES`.
        channels: of the dataset, for int8.

    Raises:
        ConfigError: the type cannot hold a value, or a value is not finite; the picture is named.
    """
    here = np.asarray(present, dtype=bool)
    check_range(tokens, [uid for uid, is_here in zip(uids, present, strict=True) if is_here], dtype)
    coded = encode(tokens, dtype, channels)
    return {name: _column(values, here) for name, values in coded.items()}


def _column(values: np.ndarray, present: np.ndarray) -> pa.Array:
    """Fixed-shape tensors, null where no picture is present."""
    if not present.all():
        full = np.zeros((len(present), *values.shape[1:]), values.dtype)
        full[present] = values
        values = full
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    if present.all():
        return column
    storage = column.storage
    masked = pa.FixedSizeListArray.from_arrays(
        storage.flatten(), type=storage.type, mask=pa.array(~present)
    )
    return pa.ExtensionArray.from_storage(column.type, masked)
