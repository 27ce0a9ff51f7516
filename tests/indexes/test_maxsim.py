"""Search finds what comparing every vector with every other finds, ties and all."""

import math

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.exact import on_grid
from indexes.maxsim import MaxSimIndex

E = 4
FEW = np.array(  # few enough that searches are full of ties and equal vectors
    [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [-1, 0, 0, 0],
        [0.6, 0.8, 0, 0],
        [0.6, 0, 0.8, 0],
        [0.5, 0.5, 0.5, 0.5],
        [0.6, 0.79999995, 0, 0],
    ],
    np.float32,
)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def index_of(items, vectors: np.ndarray) -> MaxSimIndex:
    return MaxSimIndex(np.asarray(items), np.ascontiguousarray(vectors))


def by_hand(items, vectors, query, k, without=()) -> list[tuple[int, float]]:
    """Every vector of the query against every vector of every item."""
    scored = [
        (
            -max(
                math.fsum(a * b for a, b in zip(x, y, strict=True))
                for x in on_grid(query).tolist()
                for y in its
            ),
            item,
        )
        for item, its in zip(items, on_grid(vectors).tolist(), strict=True)
        if item not in without
    ]
    return [(item, -score) for score, item in sorted(scored)[:k]]


def found(index, queries, k, without=()) -> list[list[tuple[int, float]]]:
    results = index.search(queries, k, without=np.array(without, np.int64))
    return [list(zip(hit.items.tolist(), hit.scores.tolist(), strict=True)) for hit in results]


@st.composite
def searches(draw):
    """Items with gaps between them, vectors with many ties, some items taken down."""
    num_items, per_item = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    steps = draw(st.lists(st.integers(1, 5), min_size=num_items, max_size=num_items))
    items = (np.cumsum(steps) - 1).tolist()
    numbers = st.integers(0, len(FEW) - 1)

    def vectors(count, each):
        size = count * each
        chosen = draw(st.lists(numbers, min_size=size, max_size=size))
        return FEW[chosen].reshape(count, each, E)

    queries = vectors(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    without = draw(st.lists(st.sampled_from(items), max_size=4))
    return items, vectors(num_items, per_item), queries, draw(st.integers(1, 14)), without


@given(searches())
@settings(max_examples=150)
def test_search_is_brute_force(search):
    items, vectors, queries, k, without = search
    index = index_of(items, vectors)
    expected = [by_hand(items, vectors, query, k, without) for query in queries]
    assert found(index, queries, k, without) == expected


@pytest.mark.parametrize("per_query", [1, 5])
@pytest.mark.parametrize("per_item", [1, 8])
@pytest.mark.parametrize("k", [1, 10])
def test_search_among_many_is_brute_force(per_item, per_query, k):
    vectors, queries = unit(300, per_item, 16), unit(4, per_query, 16, seed=1)
    items = np.arange(300) * 2 + 5
    expected = [by_hand(items.tolist(), vectors, query, k) for query in queries]
    assert found(index_of(items, vectors), queries, k) == expected


def test_one_look_at_the_vectors_is_enough_where_nothing_ties(monkeypatch):
    index, looks, knn = index_of(range(400), unit(400, 8, 16)), [], faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda *given: looks.append(given) or knn(*given))
    index.search(unit(1, 1, 16, seed=1), 5)
    assert len(looks) == 1


@pytest.mark.parametrize("k", [1, 3, 50, 400, 1000])
def test_where_all_are_equal_the_first_are_found(k):
    items = np.arange(400) * 3
    vectors = np.broadcast_to(unit(1, 1, 33), (400, 4, 33))
    (hits,) = index_of(items, vectors).search(unit(1, 2, 33, seed=1), k)
    assert hits.items.tolist() == items[:k].tolist()
    assert len(set(hits.scores.tolist())) == 1


def test_a_picture_that_fills_the_first_hits_does_not_hide_the_others():
    # All vectors of picture 7 are closer than any of another.
    vectors = unit(50, 6, 16)
    query = unit(1, 16, seed=1)
    vectors[7] = query[0]
    expected = by_hand(range(50), vectors, query, 4)
    assert expected[0][0] == 7
    assert found(index_of(range(50), vectors), query[None], 4) == [expected]


def test_what_was_taken_down_does_not_hide_what_one_of_the_querys_vectors_is_closest_to():
    # All that the second vector sees first was taken down; behind it lies the best of all.
    vectors = np.array([[0, 1], [0, 1], [0, 1], [0.8, -0.6], [-0.6, 0.8]], np.float32)[:, None]
    query = np.array([[1, 0], [0, 1]], np.float32)
    vectors[4] = [-0.43588989, 0.9]
    expected = by_hand(range(5), vectors, query, 1, without=(0, 1, 2))
    assert expected[0][0] == 4
    assert found(index_of(range(5), vectors), query[None], 1, without=[0, 1, 2]) == [expected]


def test_differences_too_small_for_float32_decide_all_the_same():
    # To float32 all of these are at 0.6 or thereabouts; the grid tells them apart.
    dice = np.random.default_rng(0)
    query = unit(1, 64)
    vectors = (query * 0.6 + 0.8 * unit(200, 64, seed=1)).astype(np.float32)
    vectors -= (vectors @ query.T - 0.6) * query
    vectors += (dice.normal(size=(200, 64)) * 1e-8).astype(np.float32)
    vectors *= 0.99
    expected = by_hand(range(200), vectors[:, None], query, 20)
    in_float32 = np.argsort(-(vectors @ query[0]), kind="stable")[:20].tolist()
    assert [item for item, _ in expected] != in_float32  # or the test would show nothing
    assert found(index_of(range(200), vectors[:, None]), query[None], 20) == [expected]


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_threads_or_neighbours(threads):
    vectors, queries = unit(200, 4, 32), unit(30, 3, 32, seed=1)
    vectors[100:] = vectors[:100]
    index = index_of(range(200), vectors)
    faiss.omp_set_num_threads(threads)
    together = found(index, queries, 7)
    assert together == [found(index, query[None], 7)[0] for query in queries]
    assert together == [by_hand(range(200), vectors, query, 7) for query in queries]


def test_vectors_are_searched_where_they_lie_on_disk(tmp_path):
    vectors, queries = unit(40, 3, 16), unit(5, 2, 16, seed=1)
    (tmp_path / "vectors.f32").write_bytes(vectors.tobytes())
    mapped = np.memmap(tmp_path / "vectors.f32", np.float32, "r", shape=vectors.shape)
    items = np.arange(40) * 2
    assert found(MaxSimIndex(items, mapped), queries, 7) == found(
        index_of(items, vectors), queries, 7
    )


def test_zero_vectors_are_as_far_from_all_as_can_be_told():
    vectors = unit(6, 2, 16)
    vectors[[1, 4]] = 0
    query = unit(1, 16, seed=1)
    expected = by_hand(range(6), vectors, query, 6)
    assert [score for item, score in expected if item in (1, 4)] == [0, 0]
    assert found(index_of(range(6), vectors), query[None], 6) == [expected]
    assert found(index_of(range(6), vectors), 0 * query[None], 2) == [[(0, 0.0), (1, 0.0)]]


def test_taking_all_down_leaves_nothing():
    index = index_of([2, 4], unit(2, 2, 16))
    assert found(index, unit(1, 1, 16), 3, without=[4, 2, 9]) == [[]]
    assert found(index_of([], unit(0, 2, 16)), unit(2, 1, 16), 3) == [[], []]
    assert found(index, unit(0, 1, 16), 3) == []


def test_what_does_not_fit_is_refused():
    index = index_of([2, 4], unit(2, 2, 16))
    with pytest.raises(ValueError, match="k=0"):
        index.search(unit(1, 1, 16), 0)
    for shape in [(1, 16), (1, 1, 15), (1, 0, 16)]:
        with pytest.raises(ValueError, match="queries are"):
            index.search(unit(*shape), 1)
    with pytest.raises(ValueError, match="not normalised"):
        index.search(unit(1, 1, 16) * 2, 1)
    with pytest.raises(ValueError, match="not normalised"):
        index_of([1], unit(1, 2, 16) * 2).search(unit(1, 1, 16), 1)
    for items in ([5, 4], [6, 6]):
        with pytest.raises(ValueError, match="ascend"):
            index_of(items, unit(2, 2, 16))
    for vectors in (unit(2, 16), unit(3, 2, 16), unit(2, 2, 16).astype(np.float64)):
        with pytest.raises(ValueError, match="vectors are"):
            MaxSimIndex(np.array([1, 2]), vectors)
