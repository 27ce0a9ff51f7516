"""Approximate indexes find what an exact one finds if they look everywhere, and never lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.approximate import ApproximateIndex, best_distinct
from indexes.maxsim import MaxSimIndex
from indexes.merging import merged
from indexes.proposer import Proposer, Width

E = 4
FEW = np.array(
    [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [-1, 0, 0, 0],
        [0.6, 0.8, 0, 0],
        [0.6, 0, 0.8, 0],
        [0.5, 0.5, 0.5, 0.5],
        [0.6, 0.79999995, 0, 0],
        [0, 0, 0, 0],
    ],
    np.float32,
)
KINDS = ["hnsw", "ivf", "ivfpq"]


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def made(kind, vectors, *, items=None, per_item=None, width=None) -> ApproximateIndex:
    """Of width None, one that looks everywhere."""
    per_item = per_item or vectors.shape[1]
    exact = MaxSimIndex(np.arange(len(vectors)) if items is None else items, vectors)
    flat = merged(vectors, per_item).reshape(-1, vectors.shape[2])
    proposer = Proposer.trained(kind, flat, len(flat), seed=0)
    proposer.add(flat)
    return ApproximateIndex(exact, proposer, per_item, width or Width(proposer.lists, len(flat)))


def told(found) -> list[tuple[list, list]]:
    return [(hits.items.tolist(), hits.scores.tolist()) for hits in found]


@st.composite
def searches(draw):
    """Few different vectors, zero among them, so that there are ties everywhere."""
    num_items, per_item = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    steps = draw(st.lists(st.integers(1, 5), min_size=num_items, max_size=num_items))
    items = np.cumsum(steps) - 1
    numbers = st.integers(0, len(FEW) - 1)

    def vectors(count, each):
        size = count * each
        chosen = draw(st.lists(numbers, min_size=size, max_size=size))
        return FEW[chosen].reshape(count, each, E)

    queries = vectors(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    without = draw(st.lists(st.sampled_from(items.tolist()), max_size=4))
    kept = draw(st.integers(1, per_item))
    return items, vectors(num_items, per_item), queries, draw(st.integers(1, 14)), without, kept


@given(search=searches())
@settings(max_examples=60, deadline=None)
def test_lists_that_are_all_read_give_what_an_exact_search_gives(search):
    items, vectors, queries, k, without, kept = search
    index = made("ivf", vectors, items=items, per_item=kept)
    down = np.array(without, np.int64)
    found = index.search(queries, k, without=down)
    assert told(found) == told(index.exact.search(queries, k, without=down))


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
@given(search=searches())
@settings(max_examples=60, deadline=None)
def test_others_give_as_many_as_an_exact_search_with_their_true_scores(kind, search):
    """A graph may have no way to a vector; short codes never propose the very worst."""
    items, vectors, queries, k, without, kept = search
    index = made(kind, vectors, items=items, per_item=kept)
    down = np.array(without, np.int64)
    everything = index.exact.search(queries, len(items), without=down)
    for hits, its in zip(index.search(queries, k, without=down), everything, strict=True):
        assert len(hits.items) == min(k, len(its.items))
        true = dict(zip(its.items.tolist(), its.scores.tolist(), strict=True))
        assert [true[item] for item in hits.items.tolist()] == hits.scores.tolist()
        order = np.lexsort((hits.items, -hits.scores))
        assert order.tolist() == list(range(len(order)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_item", [8, 3])
@pytest.mark.parametrize("per_query", [1, 4])
def test_looking_everywhere_finds_all_among_many(kind, per_item, per_query):
    vectors, queries = unit(200, 8, 16), unit(9, per_query, 16, seed=1)
    index = made(kind, vectors, per_item=per_item)
    assert told(index.search(queries, 10)) == told(index.exact.search(queries, 10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 25, 200, 500])
def test_a_narrow_search_gives_as_many_as_are_wanted_with_true_scores(kind, k):
    vectors, queries = unit(200, 8, 16), unit(5, 1, 16, seed=1)
    index = made(kind, vectors, width=Width(1, 10))
    down = np.arange(0, 200, 3)
    everything = index.exact.search(queries, 200, without=down)
    for hits, its in zip(index.search(queries, k, without=down), everything, strict=True):
        assert len(hits.items) == min(k, 133)
        true = dict(zip(its.items.tolist(), its.scores.tolist(), strict=True))
        assert [true[item] for item in hits.items.tolist()] == hits.scores.tolist()
        assert (np.diff(hits.scores) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_query_finds_does_not_depend_on_its_neighbours(kind):
    vectors, queries = unit(300, 4, 16), unit(20, 2, 16, seed=1)
    index = made(kind, vectors, width=Width(3, 40))
    alone = [index.search(query[None], 10)[0] for query in queries]
    assert told(index.search(queries, 10)) == told(alone)


@pytest.mark.parametrize("kind", KINDS)
def test_the_width_decides_what_is_found(kind):
    vectors = unit(2000, 4, 16)
    queries = unit(60, 1, 16, seed=1)
    shares = []
    for width in (Width(1, 10), Width(8, 80), Width(64, 1000)):
        index = made(kind, vectors, width=width)
        true = index.exact.search(queries, 10)
        found = index.search(queries, 10)
        both = zip(found, true, strict=True)
        shares.append(np.mean([np.isin(its.items, hits.items).mean() for hits, its in both]))
    assert shares[0] < shares[1] <= shares[2]
    assert shares[2] > 0.98


def test_the_best_places_come_once_with_all_that_tie():
    scores = np.array([[5, 4, 4, 3, 3, 1], [9, 8, 7, -np.inf, -np.inf, -np.inf]], np.float32)
    places = np.array([[2, 0, 2, 7, 1, 3], [4, 4, 4, -1, -1, -1]])
    found = best_distinct(scores, places, k=3, count=3, margin=0.5)
    pairs = list(zip(found.rows.tolist(), found.places.tolist(), strict=True))
    assert pairs == [(0, 2), (0, 0), (0, 7), (0, 1), (1, 4)]
    found = best_distinct(scores, places, k=1, count=2, margin=0.5)
    pairs = list(zip(found.rows.tolist(), found.places.tolist(), strict=True))
    assert pairs == [(0, 2), (0, 0), (1, 4)]


def test_taking_all_down_leaves_nothing_and_no_query_asks_nothing():
    index = made("ivf", unit(20, 2, 16))
    assert told(index.search(unit(1, 1, 16), 3, without=np.arange(20))) == [([], [])]
    assert index.search(unit(0, 1, 16), 3) == []
    with pytest.raises(ValueError, match="k=0"):
        index.search(unit(1, 1, 16), 0)
    with pytest.raises(ValueError, match="not normalised"):
        index.search(2 * unit(1, 1, 16), 1)


def test_a_proposer_of_other_items_is_refused():
    index = made("ivf", unit(20, 2, 16))
    with pytest.raises(ValueError, match="40 vectors for 20 items of 1 each"):
        ApproximateIndex(index.exact, index.proposer, 1, index.width)
