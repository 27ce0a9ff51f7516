"""A computed shuffle is a permutation, of any size, and looks like one of chance."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.shuffle import key_of, shuffled


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_every_number_comes_once(size, key):
    assert sorted(shuffled(np.arange(size), size, key).tolist()) == list(range(size))


@given(
    whole=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 2**64 - 1)), max_size=5),
    seed=st.integers(0, 9),
)
def test_many_shuffles_at_once_are_those_made_one_by_one(whole, seed):
    asked = [(place, size, key) for size, key in whole for place in range(size)]
    np.random.default_rng(seed).shuffle(asked)
    places = np.array([place for place, _, _ in asked], np.int64)
    sizes = np.array([size for _, size, _ in asked], np.int64)
    found = shuffled(places, sizes, np.array([key for _, _, key in asked], np.uint64))
    one_by_one = [int(shuffled(np.array([p]), size, key)[0]) for p, size, key in asked]
    assert found.tolist() == one_by_one


@pytest.mark.parametrize("size", [2**31, 10**11 + 7, 2**62])
def test_any_size_is_shuffled_without_holding_it(size):
    places = np.concatenate([np.arange(5000), np.arange(size - 5000, size)])
    found = shuffled(places, size, 3)
    assert len(set(found.tolist())) == len(places)
    assert found.min() >= 0
    assert found.max() < size
    assert stats.kstest(found / size, "uniform").pvalue > 1e-3


def many(size: int, count: int) -> np.ndarray:
    """int64[count, size]: shuffles by as many keys."""
    keys = np.repeat(key_of(np.arange(count)), size)
    return shuffled(np.tile(np.arange(size), count), size, keys).reshape(count, size)


@pytest.mark.parametrize("size", [2, 3, 5, 16, 100])
def test_each_number_comes_to_each_place_equally_often(size):
    made = many(size, 4000)
    counts = np.stack([np.bincount(column, minlength=size) for column in made.T])
    assert stats.chisquare(counts, axis=None).pvalue > 1e-4


@pytest.mark.parametrize("size", [4, 5])
def test_all_orders_of_a_few_come_equally_often(size):
    made = [tuple(order) for order in many(size, 12_000).tolist()]
    counts = [made.count(order) for order in itertools.permutations(range(size))]
    assert sum(counts) == len(made)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_keys_differ_with_each_part_and_their_order():
    keys = [key_of(*parts) for parts in [(), (0,), (1,), (0, 1), (1, 0), (0, 0), (-1,)]]
    assert len({int(key[0]) for key in keys}) == len(keys)
    several = key_of(5, np.arange(3), 2)
    assert several.tolist() == [int(key_of(5, n, 2)[0]) for n in range(3)]
