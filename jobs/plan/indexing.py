"""What an index of many pictures takes: bytes, memory, arithmetic."""

import math
from dataclasses import dataclass

from indexes.kinds import IndexConfig, Kind, build_flops, chosen, disk_bytes, memory_bytes

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class IndexCost:
    """Of all index shards together."""

    kind: Kind
    """Of pictures."""
    shards: int
    vector_bytes: float
    """Of pictures and captions, for exact scores; they stay on disk."""
    approximate_bytes: float
    """Stored beside them."""
    memory_bytes: float
    """That searches keep in memory."""
    flops: float
    """Of training lists and finding each vector's."""

    @property
    def stored_bytes(self) -> float:
        return self.vector_bytes + self.approximate_bytes


def index_cost(
    pictures: float, captions: float, num_queries: int, embed_dim: int, config: IndexConfig
) -> IndexCost:
    """Of so many pictures with so many captions.

    Args:
        pictures, captions: how many.
        num_queries: vectors a picture.
        embed_dim: values a vector.
        config: how they are indexed.
    """
    shards = max(1, math.ceil(pictures / config.shard_pictures))
    per_picture = min(num_queries, config.vectors_per_picture or num_queries)
    sides = [round(pictures * per_picture / shards), round(captions / shards)]
    kinds = [chosen(config, num, embed_dim) for num in sides]
    both = list(zip(kinds, sides, strict=True))
    return IndexCost(
        kind=kinds[0],
        shards=shards,
        vector_bytes=(pictures * num_queries + captions) * embed_dim * _FLOAT_BYTES,
        approximate_bytes=shards * sum(disk_bytes(kind, num, embed_dim) for kind, num in both),
        memory_bytes=shards * sum(memory_bytes(kind, num, embed_dim) for kind, num in both),
        flops=shards * sum(build_flops(kind, num, embed_dim) for kind, num in both),
    )
