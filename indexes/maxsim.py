"""Exact search by max-similarity: two items are as close as the closest two of their vectors.

A picture has Q vectors (its query outputs) and a caption one. The similarity of a caption and a
picture is BLIP-2's (section 3.2), the largest of Q inner products; that of two pictures is the
largest of Q x Q: they are alike if they have one thing in common.

All vectors lie in one array, that of number j of the item at place i at i * A + j, A vectors an
item. The best k * A + 1 vectors belong to at least k + 1 items, the k best among them, and the last
of these vectors tells whether a tie may be hidden behind it.
"""

import faiss
import numpy as np

from indexes.exact import error_bound
from indexes.hits import Hits, checked
from indexes.rescoring import Candidates, best


class MaxSimIndex:
    """Items with A vectors each, compared with all of them.

    Args:
        items: int64[N], ascending.
        vectors: float32[N, A, E], L2-normalised or zero; it may be memory-mapped.

    Raises:
        ValueError: the two do not fit.
    """

    def __init__(self, items: np.ndarray, vectors: np.ndarray) -> None:
        self.items = np.asarray(items, np.int64)
        self.vectors = vectors
        if vectors.ndim != 3 or vectors.dtype != np.float32 or len(vectors) != len(self.items):
            raise ValueError(f"vectors are {vectors.dtype} {vectors.shape} of {len(items)} items")
        if not (np.diff(self.items) > 0).all():
            raise ValueError("items must ascend")

    @property
    def vectors_per_item(self) -> int:
        """A"""
        return int(self.vectors.shape[1])

    @property
    def embed_dim(self) -> int:
        """E"""
        return int(self.vectors.shape[2])

    def __len__(self) -> int:
        """N, the number of items."""
        return len(self.items)

    @property
    def flat(self) -> np.ndarray:
        """float32[N * A, E]"""
        return self.vectors.reshape(-1, self.embed_dim)

    def places_of(self, items: np.ndarray | tuple[()]) -> np.ndarray:
        """int64[...], ascending: the places of those of these items that are here."""
        wanted = np.unique(np.asarray(items, np.int64))
        places = np.searchsorted(self.items, wanted)
        is_here = places < len(self)
        is_here[is_here] = self.items[places[is_here]] == wanted[is_here]
        return places[is_here]

    def search(
        self, queries: np.ndarray, k: int, *, without: np.ndarray | tuple[()] = ()
    ) -> list[Hits]:
        """The k items closest to each query, exactly; see `Searcher`."""
        queries = checked(queries, k, self.embed_dim)
        if not len(self) or not len(queries):
            return [Hits.none() for _ in queries]
        down = self.places_of(without)
        # All queries at once, for FAISS spreads them over threads.
        found = self._nearest(queries, k * self.vectors_per_item + 1)
        places = [
            self._candidates(query, k, down, *hits)
            for query, *hits in zip(queries, *found, strict=True)
        ]
        rows = np.repeat(np.arange(len(queries)), [len(its) for its in places])
        among = Candidates(rows, np.concatenate(places))
        return best(queries, self.vectors, self.items, among, k)

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's scores and places [..., count] for vectors [..., E]; all there are, if fewer."""
        flat = queries.reshape(-1, self.embed_dim)
        count = min(count, len(self.flat))
        scores, places = faiss.knn(flat, self.flat, count, faiss.METRIC_INNER_PRODUCT)
        shape = (*queries.shape[:-1], count)
        return scores.reshape(shape), places.reshape(shape)

    def _candidates(
        self, query: np.ndarray, k: int, down: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> np.ndarray:
        """Places among which the k best are, for sure; few more than k but for close ties.

        FAISS computes in float32, with an error up to `error_bound`. Of k items that score at least
        s there, the truly k best score at least s minus twice that.

        Args:
            query: float32[A', E]
            k: see `search`.
            down: places that must not be found, ascending.
            scores, ids: [A', some], the nearest vectors; more are asked for where they do not
                settle it.
        """
        margin = 2 * error_bound(self.embed_dim)
        while True:
            places, best = _best_of_each(ids // self.vectors_per_item, scores)
            live = ~np.isin(places, down)
            places, best = places[live], best[live]
            floor = np.partition(best, -k)[-k] - margin if len(best) >= k else -np.inf
            count = scores.shape[1]
            if count == len(self.flat) or (scores[:, -1] < floor).all():
                return places[best >= floor]
            scores, ids = self._nearest(query, 2 * count)


def _best_of_each(places: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each place once, with the best of its scores."""
    order = np.argsort(-scores, axis=None, kind="stable")
    unique, first = np.unique(places.reshape(-1)[order], return_index=True)
    return unique, scores.reshape(-1)[order][first]
