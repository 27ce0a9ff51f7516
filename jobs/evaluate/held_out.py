"""The pictures and captions of a split with their embeddings, numbered through, shard by shard."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from indexes.ranking import Block
from pipeline.dataset import Dataset
from pipeline.embeddings import (
    caption_counts,
    caption_vectors,
    embedded_rows,
    embedded_texts,
    picture_vectors,
)
from pipeline.errors import ConfigError

_GROUP = 512
"""Pictures that are ranked by one worker at once, or as many as one shard has."""


@dataclass(frozen=True)
class HeldOut:
    """Of a split all pictures that are embedded, none of them taken down.

    Pictures and captions are numbered from 0 in the order of shards and rows. What is held is row
    numbers and counts; vectors stay in the mapped files until a worker asks for a shard's.
    """

    images: Dataset
    texts: Dataset
    captions: Dataset
    """Beside them, with captions and split: `pairs` or `captions`."""
    rows: Mapping[int, np.ndarray]
    """Shard to int64[n], its rows; shards without any are absent."""
    counts: Mapping[int, np.ndarray]
    """Shard to int32[n], how many captions each of these rows has."""

    @staticmethod
    def open(images: Dataset, texts: Dataset, captions: Dataset, split: str) -> "HeldOut":
        """Find the split's pictures; the datasets lie side by side.

        Raises:
            ConfigError: the split has no caption.
            DatasetError: a shard is missing or damaged.
        """
        rows, counts = {}, {}
        for number in sorted(images.records):
            beside = captions.shard(number, columns=["uid", "split"])
            keep = beside.table.column("split").to_numpy() == split
            shard = texts.shard(number)
            here = embedded_rows(images.shard(number), shard, keep & beside.live.to_numpy())
            if len(here):
                rows[number], counts[number] = here, caption_counts(shard, here)
        held = HeldOut(images, texts, captions, rows, counts)
        if not held.num_captions:
            raise ConfigError(f"{captions.folder}: its split {split!r} has no caption")
        return held

    @cached_property
    def num_pictures(self) -> int:
        return sum(map(len, self.rows.values()))

    @cached_property
    def num_captions(self) -> int:
        return sum(int(counts.sum()) for counts in self.counts.values())

    @cached_property
    def owners(self) -> np.ndarray:
        """int64[M], ascending: the picture of each caption."""
        counts = np.concatenate([np.zeros(0, np.int32), *self.counts.values()])
        return np.repeat(np.arange(len(counts)), counts)

    @cached_property
    def first_picture(self) -> dict[int, int]:
        """Shard to the number of its first picture."""
        return _firsts({number: len(rows) for number, rows in self.rows.items()})

    @cached_property
    def first_caption(self) -> dict[int, int]:
        """Shard to the number of its first caption."""
        return _firsts({number: int(counts.sum()) for number, counts in self.counts.items()})

    @cached_property
    def groups(self) -> list[list[int]]:
        """Shards that follow each other, together of so many pictures that a worker is busy."""
        groups: list[list[int]] = []
        size = _GROUP
        for number, rows in self.rows.items():
            if size >= _GROUP:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += len(rows)
        return groups

    def places(self, pictures: np.ndarray) -> list[tuple[int, int]]:
        """Shard and row of each of these pictures, given by number."""
        numbers = np.array(list(self.first_picture))
        firsts = np.array(list(self.first_picture.values()))
        at = np.searchsorted(firsts, pictures, side="right") - 1
        return [
            (int(number), int(self.rows[number][picture - first]))
            for number, first, picture in zip(
                numbers[at].tolist(), firsts[at].tolist(), pictures.tolist(), strict=True
            )
        ]

    def picture_blocks(self, shards: Sequence[int] | None = None) -> Iterator[Block]:
        """The vectors of these shards' pictures, of all by default."""
        for number in self.rows if shards is None else shards:
            vectors = picture_vectors(self.images.shard(number), self.rows[number])
            yield self.first_picture[number], vectors

    def caption_blocks(self, shards: Sequence[int] | None = None) -> Iterator[Block]:
        """The vectors of these shards' captions, of all by default."""
        for number in self.rows if shards is None else shards:
            vectors = caption_vectors(self.texts.shard(number), self.rows[number])
            yield self.first_caption[number], vectors[:, None]

    def caption_texts(self) -> list[str]:
        """The text of each caption.

        Raises:
            ConfigError: other captions were embedded; the picture is named.
        """
        return [text for number in self.rows for its in self._texts(number) for text in its]

    def _texts(self, number: int) -> list[list[str]]:
        rows = pa.array(self.rows[number])
        table = self.captions.shard(number, columns=["uid", "captions"]).table.take(rows)
        embedded = self.texts.shard(number).table.select(["texts_digest"]).take(rows)
        return embedded_texts(table, embedded, f" in {self.captions.folder}")


def _firsts(sizes: Mapping[int, int]) -> dict[int, int]:
    """The sums of all sizes before each."""
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return dict(zip(sizes, ends, strict=False))
