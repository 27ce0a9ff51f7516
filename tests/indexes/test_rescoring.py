"""The last step of every search: exact scores of some candidates."""

import numpy as np
import pytest

from indexes import rescoring
from indexes.exact import on_grid
from indexes.rescoring import Candidates, best, inner_products


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_hand(query, vectors, items, places, k) -> list[tuple[int, float]]:
    scored = sorted(
        (-(on_grid(query) @ on_grid(vectors[place]).T).max(), items[place]) for place in places
    )
    return [(item, -score) for score, item in scored[:k]]


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
@pytest.mark.parametrize(("per_query", "per_item"), [(1, 8), (5, 3)])
def test_candidates_are_ranked_by_exact_scores(monkeypatch, at_once, per_query, per_item):
    monkeypatch.setattr(rescoring, "_SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(rescoring, "_EXACT_AT_ONCE", at_once)
    vectors, queries = unit(50, per_item, 16), unit(4, per_query, 16, seed=1)
    vectors[25:] = vectors[:25]  # ties all over
    items = np.arange(50) * 3 + 1
    chosen = [np.arange(50), np.arange(0, 50, 7), np.zeros(0, np.int64), np.array([40, 15, 3])]
    rows = np.repeat(np.arange(4), [len(places) for places in chosen])
    found = best(queries, vectors, items, Candidates(rows, np.concatenate(chosen)), 6)
    for query, places, hits in zip(queries, chosen, found, strict=True):
        expected = by_hand(query, vectors, items, places, 6)
        assert list(zip(hits.items.tolist(), hits.scores.tolist(), strict=True)) == expected


def test_inner_products_are_those_of_each_querys_own_vectors():
    vectors, queries = unit(9, 16), unit(2, 16, seed=1)
    ids = np.array([[3, 8, -1], [-1, 0, 3]])
    expected = np.full((2, 3), -np.inf)
    for row, column in ((0, 0), (0, 1), (1, 1), (1, 2)):
        expected[row, column] = queries[row] @ vectors[ids[row, column]]
    np.testing.assert_allclose(inner_products(queries, vectors, ids), expected, atol=1e-6)


def test_a_vector_that_is_too_long_is_refused():
    vectors = 2 * unit(3, 2, 16)
    with pytest.raises(ValueError, match="not normalised"):
        best(unit(1, 1, 16), vectors, np.arange(3), Candidates(np.zeros(3, int), np.arange(3)), 1)
