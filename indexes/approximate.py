"""Approximate search by max-similarity: candidates from FAISS, then their exact scores.

A search takes a shortlist of vectors from HNSW or IVF, which keep rough codes, scores them by the
vectors themselves, groups them by item, and scores the best items exactly by all their vectors
(`indexes.rescoring`). So what is found has the score and the order that an exact search would give
it; an item can only be missed.
"""

import numpy as np

from indexes.exact import error_bound
from indexes.hits import Hits, checked
from indexes.maxsim import MaxSimIndex
from indexes.proposer import Proposer, Width
from indexes.rescoring import Candidates, best, inner_products

TUNED_FOR = 10
"""Items for which a width is tuned; for more the shortlist grows with them."""
_SPARE = 2
"""Items that are scored by all their vectors, for each that is wanted."""


class ApproximateIndex:
    """An exact index with a proposer, so that not all vectors need be compared.

    Args:
        exact: the vectors themselves, which may be memory-mapped.
        proposer: number i is of the item at place i // `per_item`.
        per_item: vectors that an item has in the proposer; fewer than A if they were merged.
        width: how widely to look.

    Raises:
        ValueError: the two hold different numbers of items.
    """

    def __init__(self, exact: MaxSimIndex, proposer: Proposer, per_item: int, width: Width) -> None:
        if len(proposer) != len(exact) * per_item:
            raise ValueError(f"{len(proposer)} vectors for {len(exact)} items of {per_item} each")
        self.exact = exact
        self.proposer = proposer
        self.per_item = per_item
        self.width = width

    @property
    def items(self) -> np.ndarray:
        """int64[N], ascending."""
        return self.exact.items

    @property
    def vectors_per_item(self) -> int:
        """A, without regard to merging."""
        return self.exact.vectors_per_item

    @property
    def embed_dim(self) -> int:
        """E"""
        return self.exact.embed_dim

    def __len__(self) -> int:
        """N, the number of items."""
        return len(self.exact)

    def search(
        self, queries: np.ndarray, k: int, *, without: np.ndarray | tuple[()] = ()
    ) -> list[Hits]:
        """The k items closest to each query, but for those that are missed; see `Searcher`.

        As many are found as an exact search finds: where too few come, it looks more widely.
        """
        queries = checked(queries, k, self.embed_dim)
        down = self.exact.places_of(without)
        enough = min(k, len(self) - len(down))
        if not enough or not len(queries):
            return [Hits.none() for _ in queries]
        found = [Hits.none()] * len(queries)
        shortlist = self.width.shortlist * max(1, -(-k // TUNED_FOR))
        width = Width(self.width.probes, shortlist)
        rows = np.arange(len(queries))
        while len(rows):
            if width.shortlist > len(self.proposer):
                rest = self.exact.search(queries[rows], k, without=without)
            else:
                among = self.proposed(queries[rows], k, width, down)
                rest = best(queries[rows], self.exact.vectors, self.items, among, k)
            for row, hits in zip(rows, rest, strict=True):
                found[row] = hits
            rows = rows[[len(hits.items) < enough for hits in rest]]
            width = Width(2 * width.probes, 2 * width.shortlist)
        return found

    def proposed(self, queries: np.ndarray, k: int, width: Width, down: np.ndarray) -> Candidates:
        """The items worth scoring by all their vectors, for each query.

        Args:
            queries: float32[n, A', E]
            k: items wanted.
            width: how widely to look.
            down: places that must not be found, ascending.
        """
        flat = queries.reshape(-1, self.embed_dim)
        scores, numbers = self.proposer.search(flat, width)
        is_merged = self.per_item < self.vectors_per_item
        if not is_merged:
            scores = inner_products(flat, self.exact.flat, numbers)
        places = np.where(numbers < 0, -1, numbers // self.per_item)
        scores[(places < 0) | np.isin(places, down)] = -np.inf
        shape = (len(queries), -1)
        # A merged vector's score says too little to choose by.
        count = len(self) if is_merged else _SPARE * k
        margin = 2 * error_bound(self.embed_dim)
        return best_distinct(scores.reshape(shape), places.reshape(shape), k, count, margin)


def best_distinct(
    scores: np.ndarray, places: np.ndarray, k: int, count: int, margin: float
) -> Candidates:
    """The best places of each row, each once.

    Args:
        scores: float32[n, c], -inf for what is not wanted.
        places: int64[n, c]
        k, margin: those within the margin of the k-th best are taken, however many they are.
        count: taken of the others, with those; at least k.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    places = np.take_along_axis(places, order, axis=1)
    by_place = np.argsort(places, axis=1, kind="stable")
    ascending = np.take_along_axis(places, by_place, axis=1)
    is_new = np.ones(places.shape, bool)
    is_new[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    is_first = np.empty(places.shape, bool)
    np.put_along_axis(is_first, by_place, is_new, axis=1)
    is_first &= scores > -np.inf
    rank = np.cumsum(is_first, axis=1)
    kth = np.where(is_first & (rank == k), scores, -np.inf).max(axis=1, keepdims=True)
    rows, columns = np.nonzero(is_first & ((rank <= count) | (scores >= kth - margin)))
    return Candidates(rows, places[rows, columns])
