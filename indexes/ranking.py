"""Where the right items of queries rank among all items, and which items rank first.

Items come block by block, so that no matrix of all scores is ever held. Scores are exact
(`indexes.exact`): equal vectors tie wherever they stand, and all ties count against the right item.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from indexes.exact import on_grid

_SIDE = 512
"""Queries and items whose scores are computed at once: 2 MB, as much as a core's cache."""
_VECTORS_AT_ONCE = 1 << 14
"""Vectors of items on the grid at once: 32 MB of 256 values each."""

Block = tuple[int, np.ndarray]
"""The number of the first item, and float32[m, A, E], the L2-normalised vectors of m items."""


@dataclass(frozen=True)
class Right:
    """The items that are right for queries: R pairs of them, in any order, none twice."""

    queries: np.ndarray
    """int64[R]"""
    items: np.ndarray
    """int64[R], by their numbers among all items."""
    scores: np.ndarray
    """float64[R], exact (`own_scores`)."""


@dataclass(frozen=True)
class Ranking:
    """What came of n queries; a score is the largest inner product of two vectors."""

    ranks: np.ndarray
    """int64[n]: how many wrong items score at least as much as the best right one; -1 where none
    is right."""
    items: np.ndarray
    """int64[n, k]: the best items, the best first. Of equal scores wrong items come before right
    ones, and lower numbers before higher; -1 where there are no more."""
    scores: np.ndarray
    """float64[n, k]: theirs, -inf where there are no more."""


def own_scores(pictures: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """float64[M]: each caption's similarity to its own picture.

    Args:
        pictures: float[N, Q, E], L2-normalised.
        texts: float[M, E], L2-normalised.
        owners: int64[M], the picture of each caption.

    Raises:
        ValueError: a vector is not normalised.
    """
    scores = np.zeros(len(owners))
    size = max(1, _VECTORS_AT_ONCE // pictures.shape[1])
    for part in _slices(len(owners), size):
        own = on_grid(pictures[owners[part]])
        scores[part] = (own @ on_grid(texts[part])[:, :, None]).max(axis=(1, 2))
    return scores


def rank(queries: np.ndarray, right: Right, blocks: Iterable[Block], k: int = 0) -> Ranking:
    """Rank all items for each query.

    Beside the queries on the grid it holds two blocks of scores and the k best of each query.

    Args:
        queries: float32[n, A', E], L2-normalised.
        right: what is right for them.
        blocks: all items, numbers ascending.
        k: best items wanted.

    Raises:
        ValueError: a vector is not normalised.
    """
    rows = np.ascontiguousarray(on_grid(queries).swapaxes(0, 1))
    best = np.full(len(queries), -np.inf)
    np.maximum.at(best, right.queries, right.scores)
    ranks = np.zeros(len(queries), np.int64)
    top = _Top.empty(len(queries), k)
    for first, columns in _small(blocks):
        for part in _slices(len(queries), _SIDE):
            scores = _similarities(rows[:, part], columns)
            _hide(scores, right, part.start, first)
            ranks[part] += (scores >= best[part, None]).sum(axis=1)
            if k:
                top.meet(part, first, scores)
    ranks[np.isinf(best)] = -1
    return Ranking(ranks, *top.joined_by(right))


def reranked(ranking: Ranking, is_right: np.ndarray, scores: np.ndarray, tie: float) -> np.ndarray:
    """The ranks of queries whose best items were put in order by other scores.

    Where no right item is among these, the rank stays as it was: behind all of them.

    Args:
        ranking: with the k best items of n queries.
        is_right: bool[n, k], which of them are right.
        scores: float64[n, k], by which these are ordered now; of any value where there is none.
        tie: scores so far apart count as equal, and so against the right item: they were summed in
            float32, each in another order.

    Returns:
        int64[n], as `Ranking.ranks`.
    """
    is_there = ranking.items >= 0
    is_right = is_right & is_there
    best = np.where(is_right, scores, -np.inf).max(axis=1, initial=-np.inf)
    before = (is_there & ~is_right & (scores >= best[:, None] - tie)).sum(axis=1)
    return np.where(is_right.any(axis=1), before, ranking.ranks)


@dataclass
class _Top:
    """The best wrong items of each query so far, in the order of their numbers."""

    items: np.ndarray
    scores: np.ndarray

    @staticmethod
    def empty(num_queries: int, k: int) -> "_Top":
        return _Top(np.full((num_queries, k), -1), np.full((num_queries, k), -np.inf))

    def meet(self, part: slice, first: int, scores: np.ndarray) -> None:
        """Take in float64[rows, m], the scores of some queries and items from `first` on."""
        k = self.items.shape[1]
        beaten = (scores > self.scores[part].min(axis=1)[:, None]).any(axis=1)
        rows = np.flatnonzero(beaten)
        if not len(rows):
            return
        where = part.start + rows
        both = np.hstack([self.scores[where], scores[rows]])
        last = np.partition(both, -k, axis=1)[:, -k, None]
        above, level = both > last, both == last
        # Of those that are level with the last one as many as there is room for, the first ones.
        room = k - above.sum(axis=1)[:, None]
        chosen = above | (level & (level.cumsum(axis=1) <= room))
        row, column = (places.reshape(-1, k) for places in np.nonzero(chosen))
        numbers = np.where(
            column < k, self.items[where[row], np.minimum(column, k - 1)], first + column - k
        )
        self.scores[where] = both[row, column]
        self.items[where] = np.where(np.isinf(self.scores[where]), -1, numbers)

    def joined_by(self, right: Right) -> tuple[np.ndarray, np.ndarray]:
        """Items and scores of `Ranking`, with the right ones among them."""
        num_queries, k = self.items.shape
        if not k:
            return self.items, self.scores
        there = np.nonzero(self.items >= 0)
        queries = np.concatenate([there[0], right.queries])
        items = np.concatenate([self.items[there], right.items])
        scores = np.concatenate([self.scores[there], right.scores])
        is_right = np.arange(len(queries)) >= len(there[0])
        order = np.lexsort((items, is_right, -scores, queries))
        queries = queries[order]
        place = np.arange(len(queries)) - np.searchsorted(queries, queries)
        kept = place < k
        where = queries[kept], place[kept]
        found = _Top.empty(num_queries, k)
        found.items[where], found.scores[where] = items[order][kept], scores[order][kept]
        return found.items, found.scores


def _small(blocks: Iterable[Block]) -> Iterator[tuple[int, np.ndarray]]:
    """Items few at a time: the first one's number, and float64[A, m, E] on the grid."""
    for begin, vectors in blocks:
        some = max(_SIDE, _VECTORS_AT_ONCE // vectors.shape[1] // _SIDE * _SIDE)
        for outer in _slices(len(vectors), some):
            exact = np.ascontiguousarray(on_grid(vectors[outer]).swapaxes(0, 1))
            for inner in _slices(exact.shape[1], _SIDE):
                yield begin + outer.start + inner.start, exact[:, inner]


def _similarities(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float64[n, m] of vectors [A', n, E] and [A, m, E] on the grid: the largest of A' x A."""
    products = (row @ column.T for row in rows for column in columns)
    scores = next(products)
    for others in products:
        np.maximum(scores, others, out=scores)
    return scores


def _hide(scores: np.ndarray, right: Right, first_query: int, first_item: int) -> None:
    """Have the right items among these not be found."""
    row, column = right.queries - first_query, right.items - first_item
    here = (row >= 0) & (row < scores.shape[0]) & (column >= 0) & (column < scores.shape[1])
    scores[row[here], column[here]] = -np.inf


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
