"""Inner products on the grid are exact, so equal vectors have equal scores in any place."""

from fractions import Fraction

import numpy as np
import pytest

from indexes.exact import error_bound, on_grid


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("embed_dim", [1, 2, 7, 256, 768])
def test_products_on_the_grid_are_exact(embed_dim):
    a, b = on_grid(unit(6, embed_dim)), on_grid(unit(5, embed_dim, seed=1))
    found = a @ b.T
    for i, x in enumerate(a.tolist()):
        for j, y in enumerate(b.tolist()):
            exact = sum(Fraction(u) * Fraction(v) for u, v in zip(x, y, strict=True))
            assert Fraction(found[i, j]) == exact


def test_a_vector_with_itself_is_exact_too_where_the_sum_is_largest():
    vectors = on_grid(unit(50, 256))
    vectors[0] = on_grid(np.full(256, 1 / 16) * 1.0009)
    for vector, product in zip(vectors.tolist(), (vectors * vectors).sum(axis=1), strict=True):
        assert Fraction(product) == sum(Fraction(v) ** 2 for v in vector)


@pytest.mark.parametrize("seed", range(5))
def test_equal_vectors_have_equal_scores_in_every_block(seed):
    dice = np.random.default_rng(seed)
    distinct = unit(20, 96, seed=seed)
    numbers = dice.integers(0, 20, 333)
    queries, vectors = on_grid(unit(37, 96, seed=seed + 100)), on_grid(distinct[numbers])
    whole = queries @ vectors.T
    for number in range(20):
        assert len(np.unique(whole[:, numbers == number].T, axis=0)) == 1
    size = int(dice.integers(1, 50))
    parts = [queries @ vectors[start : start + size].T for start in range(0, 333, size)]
    assert np.array_equal(np.hstack(parts), whole)
    order = dice.permutation(96)
    assert np.array_equal(queries[:, order] @ vectors[:, order].T, whole)


@pytest.mark.parametrize("embed_dim", [2, 64, 1000])
def test_float32_is_within_the_error_bound_and_the_grid_hardly_moves_a_cosine(embed_dim):
    a, b = unit(200, embed_dim), unit(200, embed_dim, seed=1)
    grid = on_grid(a) @ on_grid(b).T
    assert np.abs(a @ b.T - grid).max() <= error_bound(embed_dim)
    slow = np.zeros((200, 200), np.float32)
    for i in range(embed_dim):  # one after the other rounds worse than a library
        slow += a[:, i, None] * b[None, :, i]
    assert np.abs(slow - grid).max() <= error_bound(embed_dim)
    assert np.abs(a.astype(np.float64) @ b.T.astype(np.float64) - grid).max() < 1e-7


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.1])
def test_what_is_not_normalised_is_refused(value):
    vectors = unit(3, 4)
    vectors[1, 2] = value
    with pytest.raises(ValueError, match="not normalised"):
        on_grid(vectors)
    assert np.array_equal(on_grid(np.zeros((2, 3))), np.zeros((2, 3)))
    assert on_grid(np.zeros((0, 3))).shape == (0, 3)
