"""Merged vectors stand for those that are close to each other."""

import numpy as np
import pytest

from indexes.merging import merged


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_vectors_of_one_direction_become_one():
    # Two bundles a picture, of five and three vectors, in mixed order.
    axes = np.eye(8, dtype=np.float32)
    which = np.array([0, 1, 0, 0, 1, 1, 0, 0])
    near = axes[which] + 0.05 * unit(8, 8)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    (found,) = merged(near[None], 2)
    expected = np.stack([near[which == number].sum(axis=0) for number in (0, 1)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("count", [4, 5, 100])
def test_where_there_are_no_more_nothing_is_merged(count):
    vectors = unit(3, 4, 8)
    assert merged(vectors, count) is vectors


@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_picture_is_merged_by_itself(count):
    vectors = unit(20, 8, 16)
    together = merged(vectors, count)
    assert together.shape == (20, count, 16)
    np.testing.assert_allclose(np.linalg.norm(together, axis=2), 1, atol=1e-5)
    for picture, its in zip(vectors, together, strict=True):
        np.testing.assert_allclose(merged(picture[None], count)[0], its, atol=1e-6)


def test_equal_and_opposite_and_zero_vectors_are_no_trouble():
    one = unit(1, 8)[0]
    vectors = np.stack([[one] * 4, [one, -one, one, -one], [0 * one] * 4])
    found = merged(vectors, 2)
    np.testing.assert_allclose(found[0], [one, one], atol=1e-6)
    np.testing.assert_allclose(found[1], [one, -one], atol=1e-6)
    assert (found[2] == 0).all()
