"""Feature shards: a picture's image tokens as one fixed-shape tensor beside its row of pairs."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import Shard, decode_row
from pipeline.errors import ConfigError

_LARGEST = {
    "fp16": float(np.finfo(np.float16).max),
    "bf16": float(np.array([0x7F7F7FFF], np.uint32).view(np.float32)[0]),  # still rounded down
}


def batches(
    shard: Shard, batch_size: int, transform: Callable[[Any], Any], threads: ThreadPoolExecutor
) -> Iterator[tuple[range, list[Any]]]:
    """Rows and transformed pictures of one batch after another, the next being made meanwhile.

    Batches never cross a shard, so that its features do not depend on its neighbours.

    Args:
        shard: of `pairs`.
        batch_size: rows a batch.
        transform: PIL picture (RGB) to what the encoder takes.
        threads: decode and transform in them.

    Yields:
        The batch's rows, and for each its transformed picture, or None where it was taken down.

    Raises:
        DatasetError: a picture cannot be decoded; it is named.
    """
    num_rows = shard.table.num_rows
    live = shard.live.to_pylist()

    def one(row: int) -> Any:
        return transform(decode_row(shard, row)) if live[row] else None

    def submit(start: int) -> tuple[range, list[Future[Any]]]:
        rows = range(start, min(start + batch_size, num_rows))
        return rows, [threads.submit(one, row) for row in rows]

    coming = submit(0)
    for start in range(batch_size, num_rows + batch_size, batch_size):
        rows, futures = coming
        coming = submit(start)
        if rows:
            yield rows, [future.result() for future in futures]


def tokens_column(
    tokens: np.ndarray, present: Sequence[bool], uids: Sequence[bytes], dtype: str
) -> pa.Array:
    """Image tokens as Arrow's fixed-shape tensors.

    Args:
        tokens: float32[N, P, C] of the pictures that are present, in order.
        present: for each row, whether it has a picture; the others become null.
        uids: of all rows, for the error.
        dtype: `fp16` or `bf16` (`schemas.TOKEN_DTYPES`).

    Raises:
        ConfigError: fp16 cannot hold a value, or a value is not finite; the picture is named.
    """
    _check_range(tokens, [u for u, here in zip(uids, present, strict=True) if here], dtype)
    stored = tokens.astype(np.float16) if dtype == "fp16" else _bf16_bits(tokens)
    if not all(present):
        full = np.zeros((len(present), *tokens.shape[1:]), stored.dtype)
        full[np.asarray(present, dtype=bool)] = stored
        stored = full
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(stored))
    if all(present):
        return column
    storage = column.storage
    masked = pa.FixedSizeListArray.from_arrays(
        storage.flatten(), type=storage.type, mask=pa.array([not here for here in present])
    )
    return pa.ExtensionArray.from_storage(column.type, masked)


def _check_range(tokens: np.ndarray, uids: Sequence[bytes], dtype: str) -> None:
    largest = np.abs(tokens).max(axis=(1, 2), initial=0)
    for number in np.flatnonzero(~(largest <= _LARGEST[dtype])).tolist():  # NaN fails too
        uid, value = uids[number].hex(), largest[number]
        if not np.isfinite(value):
            raise ConfigError(f"picture {uid}: the encoder gives {value}: its weights are no good")
        advice = "; use --dtype bf16" if dtype == "fp16" else ""
        raise ConfigError(f"picture {uid}: {value:.4g} does not fit {dtype}{advice}")


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16 as uint16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
