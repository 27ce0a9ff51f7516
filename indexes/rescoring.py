"""Exact scores of candidates, taken from their vectors: how every search ends.

Scores in float32 come first, then those on the grid (`indexes.exact`), of the vectors that may be
their item's closest alone and the items that may be among the best: about one vector for each item
that is found. So an exact answer costs hardly more than a float32 one.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from indexes.exact import error_bound, on_grid
from indexes.hits import Hits

_faiss: Any = faiss  # its type stubs lack a function

_SCORES_AT_ONCE = 1 << 20
_EXACT_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Candidates:
    """Items that queries might find: pair i is query `rows[i]` and the item at `places[i]`."""

    rows: np.ndarray
    """int64[L], ascending"""
    places: np.ndarray
    """int64[L], each once with each row"""


def best(
    queries: np.ndarray, vectors: np.ndarray, items: np.ndarray, among: Candidates, k: int
) -> list[Hits]:
    """The k best of each query's candidates, by exact scores.

    Args:
        queries: float32[n, A', E], L2-normalised.
        vectors: float32[N, A, E], which may be memory-mapped.
        items: int64[N], ascending.
        among: see there.
        k: at least 1.

    Raises:
        ValueError: a vector is longer than 1.
    """
    scores, near = _float32_scores(queries, vectors, among)
    floor = _kth_best(scores, among.rows, len(queries), k) - 2 * error_bound(vectors.shape[2])
    may_be = scores >= floor[among.rows]
    pairs, theirs, its = (values[may_be[near[0]]] for values in near)
    exact = np.full(len(scores), -np.inf)
    rows, places = among.rows[pairs], among.places[pairs]
    for part in _blocks(len(pairs), _EXACT_AT_ONCE):
        ours = on_grid(queries[rows[part], theirs[part]])
        found = on_grid(vectors[places[part], its[part]])
        np.maximum.at(exact, pairs[part], np.einsum("le,le->l", ours, found))
    of = items[among.places]
    order = np.lexsort((of, -exact, among.rows))
    order = order[may_be[order]]
    bounds = np.searchsorted(among.rows[order], np.arange(len(queries) + 1))
    return [
        Hits(of[order[first:end][:k]], exact[order[first:end][:k]])
        for first, end in itertools.pairwise(bounds)
    ]


def inner_products(queries: np.ndarray, vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Inner products in float32, of each query with vectors of its own.

    Args:
        queries: float32[n, E]
        vectors: float32[V, E], which may be memory-mapped.
        ids: int64[n, c], places among `vectors`; -1 is none.

    Returns:
        float32[n, c], -inf where there is none.
    """
    queries, ids = np.ascontiguousarray(queries), np.ascontiguousarray(ids)
    found = np.empty(ids.shape, np.float32)
    _faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(found),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(ids),
        queries.shape[1],
        *ids.shape,
    )
    found[ids < 0] = -np.inf
    return found


def _float32_scores(
    queries: np.ndarray, vectors: np.ndarray, among: Candidates
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Each candidate's score, and which vectors it may come from.

    Returns:
        float32[L], and for all vectors that float32 cannot tell from the closest one the number of
        the candidate, of the query's vector and of the item's.
    """
    _, per_query, embed_dim = queries.shape
    per_item = vectors.shape[1]
    flat = vectors.reshape(-1, embed_dim)
    margin = 2 * error_bound(embed_dim)
    scores = np.empty(len(among.rows), np.float32)
    near: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64),) * 3]
    for part in _blocks(len(scores), max(1, _SCORES_AT_ONCE // (per_query * per_item))):
        ours = queries[among.rows[part]].reshape(-1, embed_dim)
        ids = among.places[part, None] * per_item + np.arange(per_item)
        found = inner_products(ours, flat, np.repeat(ids, per_query, axis=0))
        found = found.reshape(-1, per_query, per_item)
        scores[part] = found.max(axis=(1, 2))
        pairs, theirs, its = np.nonzero(found >= scores[part, None, None] - margin)
        near.append((pairs + part.start, theirs, its))
    return scores, tuple(np.concatenate(parts) for parts in zip(*near, strict=True))


def _kth_best(scores: np.ndarray, rows: np.ndarray, num: int, k: int) -> np.ndarray:
    """float64[num]: of each row the k-th best score, -inf where there are fewer."""
    order = np.lexsort((-scores, rows))
    bounds = np.searchsorted(rows, np.arange(num + 1))
    kth = np.full(num, -np.inf)
    enough = np.diff(bounds) >= k
    kth[enough] = scores[order[bounds[:-1][enough] + k - 1]]
    return kth


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
