"""Building an index from embeddings, and from the pairs they lie beside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from indexes.maxsim import MaxSimIndex
from indexes.storage import (
    CAPTION_VECTORS,
    PICTURE_VECTORS,
    PICTURES,
    PICTURES_SCHEMA,
    IndexManifest,
    publish,
    stored_name,
    write_vectors,
)
from pipeline.captions import kept_texts
from pipeline.dataset import Dataset, Shard, check_side_by_side
from pipeline.embeddings import Embeddings, first_rows, shard_embeddings, texts_digest
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.shard import ShardWriter
from pipeline.storage import Folder

_ROWS_PER_BATCH = 1024


@dataclass(frozen=True)
class Sources:
    """The datasets an index is made of, side by side and of one checkpoint.

    Raises:
        ConfigError: they are not.
    """

    pairs: Dataset
    images: Dataset
    texts: Dataset | None
    """Without it no captions are indexed."""
    split: str
    """The split that is indexed, or `all`."""
    captions: Dataset | None = None
    """Of kind `captions`, if its captions were embedded instead of those of `pairs`."""

    def __post_init__(self) -> None:
        check_side_by_side(*self._all)
        checkpoint = checkpoint_of(self.images)
        if self.texts is not None and checkpoint_of(self.texts) != checkpoint:
            raise ConfigError(
                f"{self.images.folder} and {self.texts.folder} are of different checkpoints: "
                f"{checkpoint['digest'][:16]} and {checkpoint_of(self.texts)['digest'][:16]}"
            )
        if not self.images.records:
            raise ConfigError(f"{self.images.folder}: holds no picture")

    @property
    def _all(self) -> list[Dataset]:
        return [d for d in (self.pairs, self.images, self.texts, self.captions) if d is not None]

    @property
    def lineage(self) -> Lineage:
        """What the index is made from; its digest covers it."""
        parents = tuple(dataset.as_parent for dataset in self._all)
        frozen = {"checkpoint": checkpoint_of(self.images)}
        return Lineage("index", {"split": self.split}, parents, frozen)


def checkpoint_of(dataset: Dataset) -> dict[str, Any]:
    """Digest and stage of the checkpoint that made a dataset of embeddings.

    Raises:
        ConfigError: its lineage names none.
    """
    checkpoint = dataset.manifest.lineage.frozen.get("checkpoint")
    if not checkpoint or "digest" not in checkpoint:
        raise ConfigError(f"{dataset.folder}: its lineage names no checkpoint")
    return dict(checkpoint)


def build(folder: Folder, sources: Sources, advance: Callable[[int], None]) -> None:
    """Make the index in `folder` and publish it.

    Args:
        folder: of the index; `storage.begin` has begun it.
        sources: see there.
        advance: is told the number of rows after each shard.

    Raises:
        ConfigError: there is no picture to index, or the captions are not those that were embedded.
        DatasetError: a shard is damaged.
    """
    first_shard = next(sources.images.shards())
    num_queries, embed_dim = first_shard.table.schema.field("vectors").type.shape
    pictures = MaxSimIndex.empty(embed_dim, num_queries)
    captions = MaxSimIndex.empty(embed_dim, 1)
    with folder.temporary() as file:
        writer = ShardWriter(file, PICTURES_SCHEMA, _ROWS_PER_BATCH)
        for number, first in first_rows(sources.images).items():
            pairs = sources.pairs.shard(number)
            texts = sources.texts.shard(number) if sources.texts else None
            captioned = sources.captions.shard(number) if sources.captions else pairs
            keep = _wanted(pairs, sources.split) & captioned.live.to_numpy()
            found = shard_embeddings(sources.images.shard(number), texts, keep)
            writer.write(_pictures(pairs, captioned, texts, found, first))
            pictures.add(first + found.rows, found.pictures)
            numbers = len(captions) + np.arange(len(found.texts))
            captions.add(numbers, found.texts[:, None])
            advance(pairs.table.num_rows)
        writer.close()
        if not writer.rows:
            raise ConfigError(f"{sources.images.folder}: no picture of split {sources.split!r}")
        entry = writer.entry(stored_name(folder, PICTURES, file))
        file.publish(entry.file)
    files = {PICTURES: entry, PICTURE_VECTORS: write_vectors(folder, PICTURE_VECTORS, pictures)}
    if sources.texts:
        files[CAPTION_VECTORS] = write_vectors(folder, CAPTION_VECTORS, captions)
    publish(folder, IndexManifest(sources.lineage, num_queries, embed_dim, files))


def _wanted(pairs: Shard, split: str) -> np.ndarray:
    """bool[rows]: not taken down, and in the split."""
    live = pairs.live.to_numpy()
    return live if split == "all" else live & (pairs.table.column("split").to_numpy() == split)


def _pictures(
    pairs: Shard, captioned: Shard, texts: Shard | None, found: Embeddings, first: int
) -> pa.Table:
    """The rows of pictures.arrow for one shard (PICTURES_SCHEMA)."""
    rows = pa.array(found.rows)
    table = pairs.table.select(["uid", "url"]).take(rows)
    captions = captioned.table.column("captions").take(rows)
    kept = [[text for _, text in row] for row in kept_texts(captions)]
    if texts is not None:
        embedded = texts.table.column("texts_digest").take(rows).to_pylist()
        for uid, its, digest in zip(table.column("uid").to_pylist(), kept, embedded, strict=True):
            if texts_digest(its) != digest:
                raise ConfigError(
                    f"picture {uid.hex()}: other captions were embedded than it has; "
                    "--captions names a dataset `captions` that they are of"
                )
    return pa.table(
        {
            "uid": table.column("uid"),
            "url": table.column("url"),
            "captions": kept,
            "row": first + found.rows,
            "shard": np.full(len(found.rows), pairs.record.number),
            "shard_row": found.rows,
        },
        schema=PICTURES_SCHEMA,
    )
