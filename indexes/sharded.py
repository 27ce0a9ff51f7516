"""Several index shards searched as one."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from indexes.hits import Hits, Searcher, merged


class ShardedIndex:
    """Searchers side by side; what they find is merged, which is exact, for their scores are.

    Args:
        shards: at least one, of the same A and E; their items ascend from one to the next.

    Raises:
        ValueError: they do not fit each other.
    """

    def __init__(self, shards: Sequence[Searcher]) -> None:
        sizes = {(shard.vectors_per_item, shard.embed_dim) for shard in shards}
        if len(sizes) != 1:
            raise ValueError(f"shards hold vectors of different sizes: {sorted(sizes)}")
        self.shards = tuple(shards)
        self.items = np.concatenate([shard.items for shard in shards])
        if not (np.diff(self.items) > 0).all():
            raise ValueError("items must ascend from shard to shard")
        self._pool = ThreadPoolExecutor(len(shards))

    @property
    def vectors_per_item(self) -> int:
        """A"""
        return self.shards[0].vectors_per_item

    @property
    def embed_dim(self) -> int:
        """E"""
        return self.shards[0].embed_dim

    def __len__(self) -> int:
        """N, the number of items."""
        return len(self.items)

    def search(
        self, queries: np.ndarray, k: int, *, without: np.ndarray | tuple[()] = ()
    ) -> list[Hits]:
        """The k best of what the shards find, each in a thread; see `Searcher`."""
        found = self._pool.map(lambda shard: shard.search(queries, k, without=without), self.shards)
        return [merged(parts, k) for parts in zip(*found, strict=True)]


def as_one(shards: Sequence[Searcher]) -> Searcher:
    """A searcher over all shards: itself where there is one."""
    return shards[0] if len(shards) == 1 else ShardedIndex(shards)
