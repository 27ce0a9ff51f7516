"""Exact search by max-similarity: two items are as close as the closest two of their vectors.

A picture has Q vectors (its query outputs) and a caption one. The similarity of a caption and a
picture is BLIP-2's (section 3.2), the largest of Q inner products; that of two pictures is the
largest of Q x Q: they are alike if they have one thing in common.

All vectors lie in one flat FAISS index under the id `item * A + number`, A vectors an item. The
best k * A + 1 vectors belong to at least k + 1 items, the k best among them, and the last of these
vectors tells whether a tie may be hidden behind it.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from indexes.exact import error_bound, on_grid

_RESCORED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Hits:
    """What a query found, best first; of equal scores the lower item comes first."""

    items: np.ndarray
    """int64[n]; fewer than asked for where there are no more."""
    scores: np.ndarray
    """float64[n], cosines."""


class MaxSimIndex:
    """Items with A vectors each in an IndexFlatIP; items that are not there are simply absent.

    Args:
        index: IndexIDMap over an IndexFlatIP, the vectors of each item one after the other, items
            ascending.
        vectors_per_item: A.

    Raises:
        ValueError: the ids are not so.
    """

    def __init__(self, index: faiss.IndexIDMap, vectors_per_item: int) -> None:
        self.index = index
        self.vectors_per_item = vectors_per_item
        ids = faiss.vector_to_array(index.id_map).reshape(-1, vectors_per_item)
        self.items: np.ndarray = ids[:, 0] // vectors_per_item
        """int64[N], ascending"""
        expected = self.items[:, None] * vectors_per_item + np.arange(vectors_per_item)
        if not (np.array_equal(ids, expected) and (np.diff(self.items) > 0).all()):
            raise ValueError(f"ids are not those of items with {vectors_per_item} vectors each")

    @staticmethod
    def empty(embed_dim: int, vectors_per_item: int) -> "MaxSimIndex":
        """An index of vectors with E = `embed_dim` values, to be filled with `add`."""
        index = faiss.IndexIDMap(faiss.IndexFlatIP(embed_dim))
        return MaxSimIndex(index, vectors_per_item)

    @property
    def embed_dim(self) -> int:
        """E"""
        return int(self.index.d)

    def __len__(self) -> int:
        """N, the number of items."""
        return len(self.items)

    def add(self, items: np.ndarray, vectors: np.ndarray) -> None:
        """Add items.

        Args:
            items: int64[n], ascending, above all that are there.
            vectors: float32[n, A, E], L2-normalised.

        Raises:
            ValueError: they do not fit, or are not normalised.
        """
        expected = (len(items), self.vectors_per_item, self.embed_dim)
        if vectors.shape != expected:
            raise ValueError(f"vectors are {vectors.shape}, not {expected}")
        if not (np.diff(items, prepend=self.items[-1:]) > 0).all():
            raise ValueError("items must ascend")
        on_grid(vectors)  # checks their length
        ids = items[:, None] * self.vectors_per_item + np.arange(self.vectors_per_item)
        flat = np.ascontiguousarray(vectors, np.float32).reshape(-1, self.embed_dim)
        self.index.add_with_ids(flat, ids.reshape(-1))
        self.items = np.concatenate([self.items, items])

    def search(
        self, queries: np.ndarray, k: int, *, without: np.ndarray | tuple[()] = ()
    ) -> list[Hits]:
        """The k items closest to each query, exactly.

        Args:
            queries: float32[n, A', E], L2-normalised: n queries of A' vectors each.
            k: items wanted, at least 1.
            without: int64[...], items that must not be found.

        Raises:
            ValueError: k or the shape is wrong, or a query is not normalised.
        """
        if k < 1:
            raise ValueError(f"k={k} is not positive")
        if queries.ndim != 3 or queries.shape[1] < 1 or queries.shape[2] != self.embed_dim:
            raise ValueError(f"queries are {queries.shape}, not [n, A, {self.embed_dim}]")
        queries = np.ascontiguousarray(queries, np.float32)
        exact = on_grid(queries)
        if len(self) == 0:
            return [Hits(np.zeros(0, np.int64), np.zeros(0)) for _ in queries]
        down = np.asarray(without, np.int64)
        # All queries at once, for FAISS spreads them over threads.
        found = self._nearest(queries, k * self.vectors_per_item + 1)
        return [
            self._ranked(vectors, self._candidates(query, k, down, *hits), k)
            for query, vectors, *hits in zip(queries, exact, *found, strict=True)
        ]

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's scores and ids [..., count] for vectors [..., E]; all there are, if fewer."""
        flat = queries.reshape(-1, self.embed_dim)
        scores, ids = self.index.search(flat, min(count, self.index.ntotal))
        shape = (*queries.shape[:-1], scores.shape[1])
        return scores.reshape(shape), ids.reshape(shape)

    def _candidates(
        self, query: np.ndarray, k: int, without: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> np.ndarray:
        """Items among which the k best are, for sure; few more than k but for close ties.

        FAISS computes in float32, with an error up to `error_bound`. Of k items that score at least
        s there, the truly k best score at least s minus twice that.

        Args:
            query: float32[A', E]
            k, without: see `search`.
            scores, ids: [A', some], the nearest vectors; more are asked for where they do not
                settle it.
        """
        margin = 2 * error_bound(self.embed_dim)
        while True:
            items, best = _best_of_each(ids // self.vectors_per_item, scores)
            live = ~np.isin(items, without)
            items, best = items[live], best[live]
            floor = np.partition(best, -k)[-k] - margin if len(best) >= k else -np.inf
            count = scores.shape[1]
            if count == self.index.ntotal or (scores[:, -1] < floor).all():
                return items[best >= floor]
            scores, ids = self._nearest(query, 2 * count)

    def _ranked(self, query: np.ndarray, items: np.ndarray, k: int) -> Hits:
        """The best k of some items, by exact scores against a query on the grid [A', E]."""
        places = np.searchsorted(self.items, items)
        scores = np.zeros(len(items))
        at_once = _RESCORED_AT_ONCE // self.vectors_per_item + 1
        for start in range(0, len(items), at_once):
            part = slice(start, start + at_once)
            vectors = on_grid(self._vectors()[places[part]])
            scores[part] = (vectors @ query.T).max(axis=(1, 2))
        order = np.lexsort((items, -scores))[:k]
        return Hits(items[order], scores[order])

    def _vectors(self) -> np.ndarray:
        """float32[N, A, E]: a view of what FAISS holds."""
        flat: Any = faiss.downcast_index(self.index.index)
        values = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
        return values.reshape(-1, self.vectors_per_item, self.embed_dim)


def _best_of_each(items: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each item once, with the best of its scores."""
    order = np.argsort(-scores, axis=None, kind="stable")
    unique, first = np.unique(items.reshape(-1)[order], return_index=True)
    return unique, scores.reshape(-1)[order][first]
