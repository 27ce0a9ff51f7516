"""Embeddings of pictures and captions as datasets side by side with `pairs`, in and out of numpy.

Of a picture there are Q vectors (its projected query outputs), of a caption one; all are
L2-normalised, so that their inner products are cosines.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captions import kept_texts
from pipeline.dataset import Dataset, Shard
from pipeline.errors import ConfigError
from pipeline.schemas import image_embeddings_schema, text_embeddings_schema

_LENGTH_TOLERANCE = 1e-3


def texts_digest(texts: Iterable[str]) -> bytes:
    """SHA-256 over texts, each as its length in bytes (64 bits, little-endian) and its UTF-8."""
    sha = hashlib.sha256()
    for text in texts:
        data = text.encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.digest()


def embedded_texts(captions: pa.Table, texts: pa.Table | None, hint: str) -> list[list[str]]:
    """The kept captions of some rows.

    Args:
        captions: uid and captions.
        texts: the same rows of `text_embeddings`, which must be of these; None checks nothing.
        hint: ends the error.

    Raises:
        ConfigError: other captions were embedded; the picture is named.
    """
    kept = [[text for _, text in its] for its in kept_texts(captions.column("captions"))]
    if texts is not None:
        embedded = texts.column("texts_digest").to_pylist()
        for uid, its, digest in zip(
            captions.column("uid").to_pylist(), kept, embedded, strict=True
        ):
            if texts_digest(its) != digest:
                raise ConfigError(
                    f"picture {uid.hex()}: other captions were embedded than it has{hint}"
                )
    return kept


def image_rows(uids: Sequence[bytes], vectors: np.ndarray, present: Sequence[bool]) -> pa.Table:
    """Rows of `image_embeddings`.

    Args:
        uids: of all rows.
        vectors: float32[N, Q, E], L2-normalised, of the pictures that are present, in order.
        present: for each row, whether it has a picture; the others become null.

    Raises:
        ConfigError: a vector is not finite or not normalised; the picture is named.
    """
    here = np.asarray(present, dtype=bool)
    _check_lengths(vectors, [uid for uid, is_here in zip(uids, here, strict=True) if is_here])
    num_queries, embed_dim = vectors.shape[1:]
    schema = image_embeddings_schema(num_queries, embed_dim)
    full = np.zeros((len(here), num_queries, embed_dim), np.float32)
    full[here] = vectors
    kind = schema.field("vectors").type
    mask = None if here.all() else pa.array(~here)
    storage = pa.FixedSizeListArray.from_arrays(
        pa.array(full.reshape(-1)), type=kind.storage_type, mask=mask
    )
    columns = {"uid": list(uids), "vectors": pa.ExtensionArray.from_storage(kind, storage)}
    return pa.table(columns, schema=schema)


def text_rows(
    uids: Sequence[bytes], captions: Sequence[Sequence[Any] | None], vectors: np.ndarray
) -> pa.Table:
    """Rows of `text_embeddings`.

    Args:
        uids: of all rows.
        captions: of each row its captions, kept or not; None where it was taken down, which
            becomes null.
        vectors: float32[M, E], L2-normalised, of all kept captions in order.

    Raises:
        ConfigError: a vector is not finite or not normalised; the picture is named.
        ValueError: there are not as many vectors as kept captions.
    """
    kept = kept_texts(captions)
    counts = [len(row) for row in kept]
    if sum(counts) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors, but {sum(counts)} captions are kept")
    owners = [uid for uid, count in zip(uids, counts, strict=True) for _ in range(count)]
    _check_lengths(vectors[:, None], owners)
    schema = text_embeddings_schema(vectors.shape[1])
    down = pa.array([row is None for row in captions], pa.bool_())
    offsets = pa.array(np.cumsum([0, *counts]), pa.int32())
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    values = {
        "ordinals": pa.array([ordinal for row in kept for ordinal, _ in row], pa.int32()),
        "vectors": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    lists = {
        name: pa.ListArray.from_arrays(offsets, value, mask=down).cast(schema.field(name).type)
        for name, value in values.items()
    }
    digests = [
        None if row is None else texts_digest(text for _, text in texts)
        for row, texts in zip(captions, kept, strict=True)
    ]
    return pa.table({"uid": list(uids), **lists, "texts_digest": digests}, schema=schema)


def _check_lengths(vectors: np.ndarray, uids: Sequence[bytes]) -> None:
    """Of vectors [N, any, E] and the pictures [N] they belong to."""
    lengths = np.linalg.norm(vectors, axis=-1)
    wrong = ~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE)  # NaN is wrong too
    for number in np.flatnonzero(wrong.any(axis=1)).tolist():
        length = lengths[number][wrong[number]][0]
        raise ConfigError(
            f"picture {uids[number].hex()}: an embedding of length {length:.4g} instead of 1: "
            "the checkpoint is no good"
        )


@dataclass(frozen=True)
class Embeddings:
    """Pictures with their captions."""

    rows: np.ndarray
    """int64[N]: the row of each picture, ascending."""
    pictures: np.ndarray
    """float32[N, Q, E]"""
    owners: np.ndarray
    """int64[M]: for each caption the number of its picture among these N, ascending."""
    ordinals: np.ndarray
    """int32[M]: which of its row's captions each caption is."""
    texts: np.ndarray
    """float32[M, E]"""


def embedded_rows(
    images: Shard, texts: Shard | None = None, keep: np.ndarray | None = None
) -> np.ndarray:
    """int64[N], ascending: the rows of a shard that have vectors and are not taken down.

    Args:
        images, texts, keep: as `shard_embeddings` has them.
    """
    wanted = images.table.column("vectors").is_valid().to_numpy() & images.live.to_numpy()
    if texts is not None:
        wanted &= texts.table.column("vectors").is_valid().to_numpy() & texts.live.to_numpy()
    if keep is not None:
        wanted &= keep
    return np.flatnonzero(wanted)


def picture_vectors(images: Shard, rows: np.ndarray) -> np.ndarray:
    """float32[N, Q, E] of rows of a shard of `image_embeddings` that have vectors."""
    column = images.table.column("vectors")
    taken = column.take(pa.array(rows)).combine_chunks()
    return taken.storage.flatten().to_numpy().reshape(-1, *column.type.shape)


def caption_counts(texts: Shard, rows: np.ndarray) -> np.ndarray:
    """int32[N]: how many vectors rows of a shard of `text_embeddings` have."""
    lists = texts.table.column("vectors").take(pa.array(rows)).combine_chunks()
    return pc.list_value_length(lists).fill_null(0).to_numpy()


def caption_vectors(texts: Shard, rows: np.ndarray) -> np.ndarray:
    """float32[M, E]: the vectors of rows of a shard of `text_embeddings`, one after the other."""
    column = texts.table.column("vectors")
    lists = column.take(pa.array(rows)).combine_chunks()
    flat = pc.list_flatten(pc.list_flatten(lists)).to_numpy()
    return flat.reshape(-1, column.type.value_type.list_size)


def shard_embeddings(
    images: Shard, texts: Shard | None = None, keep: np.ndarray | None = None
) -> Embeddings:
    """The vectors of one shard, `rows` counted within it.

    Pictures that were taken down from either dataset are left out with their captions.

    Args:
        images: of `image_embeddings`.
        texts: of `text_embeddings`; without it there are no captions.
        keep: bool[rows], which rows are wanted; None takes all.
    """
    rows = embedded_rows(images, texts, keep)
    pictures = picture_vectors(images, rows)
    if texts is None:
        none = np.zeros(0, np.int64)
        return Embeddings(rows, pictures, none, none.astype(np.int32), pictures[:0, 0])
    ordinals = texts.table.column("ordinals").take(pa.array(rows)).combine_chunks()
    return Embeddings(
        rows,
        pictures,
        np.repeat(np.arange(len(rows)), caption_counts(texts, rows)),
        pc.list_flatten(ordinals).to_numpy(),
        caption_vectors(texts, rows),
    )


def read_embeddings(images: Dataset, texts: Dataset, keep: np.ndarray | None = None) -> Embeddings:
    """The vectors of two whole datasets side by side, `rows` counted over all shards.

    Args:
        images: of kind `image_embeddings`.
        texts: of kind `text_embeddings`.
        keep: bool[rows], which rows are wanted; None takes all.

    Raises:
        ConfigError: there is not one shard.
        DatasetError: a shard is missing or damaged.
        ValueError: `keep` has another length.
    """
    if not images.records:
        raise ConfigError(f"{images.folder}: holds no picture")
    if keep is not None and len(keep) != images.num_rows:
        raise ValueError(f"keep has {len(keep)} rows, {images.folder} has {images.num_rows}")
    parts = []
    num_pictures = 0
    for number, first in first_rows(images).items():
        end = first + images.records[number].entry.rows
        mine = None if keep is None else keep[first:end]
        part = shard_embeddings(images.shard(number), texts.shard(number), mine)
        owners = part.owners + num_pictures
        parts.append(replace(part, rows=part.rows + first, owners=owners))
        num_pictures += len(part.rows)
    names = [field.name for field in fields(Embeddings)]
    return Embeddings(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def first_rows(dataset: Dataset) -> dict[int, int]:
    """Shard number to the number of its first row over the whole dataset."""
    ends = accumulate(record.entry.rows for record in dataset.records.values())
    return dict(zip(dataset.records, [0, *ends], strict=False))


def split_rows(pairs: Dataset, split: str) -> np.ndarray:
    """bool[rows]: which rows of `pairs`, over all shards, are in a split."""
    columns = [shard.table.column("split").to_numpy() for shard in pairs.shards()]
    return np.concatenate([np.zeros(0, object), *columns]) == split
