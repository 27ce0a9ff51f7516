"""The datasets an index is made of, and how they are indexed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from indexes.kinds import IndexConfig
from indexes.known import Known
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage, Parent


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
    config: IndexConfig = field(default_factory=IndexConfig)
    known: Known | None = None
    """Of the index that these are added to, if any; what it has is left out."""

    def __post_init__(self) -> None:
        check_side_by_side(*self._all)
        checkpoint = self.checkpoint
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
        parents = [dataset.as_parent for dataset in self._all]
        if self.known is not None:
            parents.append(Parent("index", self.known.digest))
        config = {"split": self.split, **asdict(self.config)}
        return Lineage("index", config, tuple(parents), {"checkpoint": self.checkpoint})

    @property
    def checkpoint(self) -> dict[str, Any]:
        """Digest and stage of the checkpoint that made the embeddings."""
        return checkpoint_of(self.images)

    @property
    def shape(self) -> tuple[int, int]:
        """Q and E."""
        number = next(iter(self.images.records))
        num_queries, embed_dim = self.images.shard(number).table.schema.field("vectors").type.shape
        return num_queries, embed_dim

    def known_rows(self, numbers: Sequence[int]) -> Mapping[int, np.ndarray]:
        """For each of these shards bool[rows]: pictures that the index has that is added to.

        Raises:
            DatasetError: a shard, or a table of the index, is missing or damaged.
        """
        if self.known is None:
            return {n: np.zeros(self.pairs.records[n].entry.rows, bool) for n in numbers}
        return self.known.rows(self.pairs, numbers)

    def index_shards(self) -> Iterator[tuple[int, ...]]:
        """Numbers of the datasets' shards that are indexed together, in order."""
        together: list[int] = []
        rows = 0
        for number, record in self.images.records.items():
            if together and rows + record.entry.rows > self.config.shard_pictures:
                yield tuple(together)
                together, rows = [], 0
            together.append(number)
            rows += record.entry.rows
        yield tuple(together)


def checkpoint_of(dataset: Dataset) -> dict[str, Any]:
    """Digest and stage of the checkpoint that made a dataset of embeddings.

    Raises:
        ConfigError: its lineage names none.
    """
    checkpoint = dataset.manifest.lineage.frozen.get("checkpoint")
    if not checkpoint or "digest" not in checkpoint:
        raise ConfigError(f"{dataset.folder}: its lineage names no checkpoint")
    return dict(checkpoint)
