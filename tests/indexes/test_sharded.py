"""Several shards find what one index of all of them finds."""

import numpy as np
import pytest

from indexes.maxsim import MaxSimIndex
from indexes.sharded import ShardedIndex, as_one


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("without", [(), (4, 6, 58)])
def test_shards_find_what_the_whole_finds(k, without):
    vectors, queries = unit(30, 3, 16), unit(7, 2, 16, seed=1)
    vectors[20:] = vectors[:10]  # ties between shards
    items = np.arange(30) * 2
    whole = MaxSimIndex(items, vectors)
    parts = [slice(0, 11), slice(11, 11), slice(11, 28), slice(28, 30)]
    sharded = ShardedIndex([MaxSimIndex(items[part], vectors[part]) for part in parts])
    assert (len(sharded), sharded.embed_dim, sharded.vectors_per_item) == (30, 16, 3)
    assert np.array_equal(sharded.items, items)
    down = np.array(without, np.int64)
    expected = whole.search(queries, k, without=down)
    for mine, its in zip(sharded.search(queries, k, without=down), expected, strict=True):
        assert mine.items.tolist() == its.items.tolist()
        assert mine.scores.tolist() == its.scores.tolist()


def test_one_shard_is_searched_as_it_is():
    index = MaxSimIndex(np.arange(3), unit(3, 2, 16))
    assert as_one([index]) is index


def test_shards_that_do_not_fit_are_refused():
    one = MaxSimIndex(np.arange(3), unit(3, 2, 16))
    with pytest.raises(ValueError, match="different sizes"):
        ShardedIndex([one, MaxSimIndex(np.arange(3, 6), unit(3, 1, 16))])
    with pytest.raises(ValueError, match="ascend"):
        ShardedIndex([one, MaxSimIndex(np.arange(2, 5), unit(3, 2, 16))])
