"""Tuning takes the cheapest width that reaches a recall, and says what it reaches."""

import numpy as np
import pytest

from indexes import tuning
from indexes.approximate import ApproximateIndex
from indexes.maxsim import MaxSimIndex
from indexes.proposer import Proposer, Width
from indexes.tuning import cost_ns, measured, true_places, true_ranks, tuned


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def indexes():
    """Of each kind, of width 1; 1,500 items of 4 vectors."""
    vectors = unit(1500, 4, 16)
    exact, flat = MaxSimIndex(np.arange(1500) * 2, vectors), vectors.reshape(-1, 16)
    made = {}
    for kind in ("hnsw", "ivf", "ivfpq"):
        proposer = Proposer.trained(kind, flat, len(flat), seed=0)
        proposer.add(flat)
        made[kind] = ApproximateIndex(exact, proposer, 4, Width(1, 10))
    return made


@pytest.mark.parametrize(
    ("kind", "target"),
    [("hnsw", 0.97), ("ivf", 0.8), ("ivf", 0.97), ("ivfpq", 0.8), ("ivfpq", 0.97)],
)
def test_the_target_is_reached_and_hardly_more_than_that(indexes, kind, target):
    queries = unit(240, 1, 16, seed=1)
    index, found = tuned(indexes[kind], queries, target)
    assert found.num_queries == 120
    assert found == measured(index, queries[1::2])
    assert found.recall > target - 0.01
    # Half as wide would not have done.
    narrow = Width(max(1, index.width.probes // 2), index.width.shortlist // 2)
    assert cost_ns(index, narrow) < cost_ns(index, index.width)
    narrower = ApproximateIndex(index.exact, index.proposer, 4, narrow)
    assert measured(narrower, queries[::2]).recall < target + 0.02


def test_pictures_may_be_the_queries(indexes):
    index, found = tuned(indexes["ivfpq"], unit(60, 3, 16, seed=2), 0.9)
    assert found.recall > 0.88
    assert index.width != Width(1, 10)


def test_recall_counts_any_item_of_equal_score():
    vectors = np.repeat(unit(1, 1, 16), 300, axis=0)
    proposer = Proposer.trained("ivf", vectors[:, 0], 300, seed=0)
    proposer.add(vectors[:, 0])
    index = ApproximateIndex(MaxSimIndex(np.arange(300), vectors), proposer, 1, Width(32, 10))
    assert measured(index, unit(4, 1, 16, seed=1)).recall == 1


def test_ranks_are_those_of_the_first_vector_of_each_true_item(indexes):
    index, queries = indexes["ivf"], unit(3, 2, 16, seed=3)
    truth = true_places(index.exact, queries)
    width = Width(index.proposer.lists, 200)
    ranks = true_ranks(index, queries, truth, width)
    for query, its, found in zip(queries, truth.tolist(), ranks.tolist(), strict=True):
        lists = [index.proposer.search(vector[None], width)[1][0] // 4 for vector in query]
        for place, rank in zip(its, found, strict=True):
            where = [np.flatnonzero(numbers == place) for numbers in lists]
            assert rank == min([int(at[0]) for at in where if len(at)], default=200)
    assert (ranks < 200).mean() > 0.9


def test_a_target_out_of_reach_gives_the_best_and_says_so(indexes, monkeypatch, caplog):
    monkeypatch.setattr(tuning, "_LONGEST", 10)  # ten vectors cannot be of the ten best items
    index, found = tuned(indexes["ivfpq"], unit(60, 1, 16, seed=4), 0.999)
    assert index.width.shortlist == 10
    assert 0.3 < found.recall < 0.999
    assert f"recall={found.recall:.4f} target=0.9990" in caplog.text
