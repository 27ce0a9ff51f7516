"""What ranks first, and where right items rank, is what sorting all scores by hand gives."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import ranking as module
from indexes.exact import on_grid
from indexes.ranking import Ranking, Right, own_scores, rank, reranked

FEW = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0.6, 0, 0.8], [-1, 0, 0]], np.float32)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def all_scores(queries: np.ndarray, items: np.ndarray) -> list[list[float]]:
    """Of each query with each item, one pair of vectors after the other."""
    queries, items = on_grid(queries).tolist(), on_grid(items).tolist()
    return [
        [
            max(math.fsum(a * b for a, b in zip(q, v, strict=True)) for q in query for v in item)
            for item in items
        ]
        for query in queries
    ]


def by_hand(queries, items, pairs, k) -> tuple[list[int], list[list[int]], list[list[float]]]:
    """Ranks, and the k best items with their scores: right ones behind equal wrong ones."""
    ranks, best, its_scores = [], [], []
    for query, scores in enumerate(all_scores(queries, items)):
        right = {item for one, item in pairs if one == query}
        wrong = [score for item, score in enumerate(scores) if item not in right]
        least = max((scores[item] for item in right), default=None)
        ranks.append(-1 if least is None else sum(score >= least for score in wrong))
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i in right, i))[:k]
        missing = k - len(order)
        best.append(order + [-1] * missing)
        its_scores.append([scores[item] for item in order] + [-math.inf] * missing)
    return ranks, best, its_scores


def right_of(queries, items, pairs) -> Right:
    scores = all_scores(queries, items)
    of_queries, of_items = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    return Right(of_queries, of_items, np.array([scores[q][i] for q, i in pairs]))


def blocks(items, sizes):
    """Items in blocks of these sizes, over and over."""
    first = 0
    while first < len(items):
        for size in sizes:
            yield first, items[first : first + size]
            first += size


def check(queries, items, pairs, k, sizes=(1000,)) -> None:
    found = rank(queries, right_of(queries, items, pairs), blocks(items, sizes), k)
    expected = by_hand(queries, items, pairs, k)
    assert (found.ranks.tolist(), found.items.tolist(), found.scores.tolist()) == expected


@st.composite
def tied(draw):
    """Few vectors, so that most scores are equal; any pairs are right."""
    sizes = [draw(st.integers(1, 6)), draw(st.integers(1, 12))]
    vectors = [draw(st.integers(1, 3)) for _ in range(2)]
    made = []
    for count, each in zip(sizes, vectors, strict=True):
        size = count * each
        numbers = draw(st.lists(st.integers(0, len(FEW) - 1), min_size=size, max_size=size))
        made.append(FEW[numbers].reshape(count, each, 3))
    every = [(query, item) for query in range(sizes[0]) for item in range(sizes[1])]
    pairs = draw(st.lists(st.sampled_from(every), unique=True, max_size=8))
    return *made, pairs, draw(st.integers(0, 5)), draw(st.lists(st.integers(1, 5), min_size=1))


@given(tied())
@settings(max_examples=300)
def test_what_is_found_is_what_sorting_gives_however_many_ties(case):
    check(*case)


@pytest.mark.parametrize(("side", "vectors"), [(1, 1), (7, 40), (512, 1 << 14)])
def test_what_is_found_does_not_depend_on_the_blocks(monkeypatch, side, vectors):
    dice = np.random.default_rng(0)
    queries, items = unit(20, 3, 8), unit(90, 2, 8, seed=1)
    items[40:60] = items[:20]
    every = [(query, item) for query in range(15) for item in range(90)]
    pairs = [every[at] for at in dice.choice(len(every), 60, replace=False)]
    monkeypatch.setattr(module, "_SIDE", side)
    monkeypatch.setattr(module, "_VECTORS_AT_ONCE", vectors)
    check(queries, items, pairs, 10, sizes=(33, 2, 50))


def test_own_scores_are_those_of_each_caption_and_its_picture(monkeypatch):
    monkeypatch.setattr(module, "_VECTORS_AT_ONCE", 7)
    pictures, texts, owners = unit(4, 3, 8), unit(9, 8, seed=1), np.array([3, 0, 0, 2] * 2 + [3])
    scores = all_scores(pictures, texts[:, None])
    expected = [scores[owner][text] for text, owner in enumerate(owners)]
    assert own_scores(pictures, texts, owners).tolist() == expected


def test_a_vector_that_is_not_normalised_is_refused():
    right = Right(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    for queries, items in ((2 * FEW, FEW), (FEW, 2 * FEW)):
        with pytest.raises(ValueError, match="normalised"):
            rank(queries[:, None], right, [(0, items[:, None])])


# Re-ranking


def two_queries() -> tuple[Ranking, np.ndarray]:
    """The best four of two queries: the right ones second and fourth, and none of them."""
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, -np.inf, -np.inf]])
    items = np.array([[7, 3, 1, 5], [2, 6, -1, -1]])
    is_right = np.array([[False, True, False, True], [False, False, True, True]])
    return Ranking(np.array([1, 9]), items, scores), is_right


def test_the_best_right_item_counts_among_those_that_were_put_in_order():
    ranking, is_right = two_queries()
    scores = np.array([[1.0, 0.0, 3.0, 2.0], [5.0, 4.0, 9.0, 9.0]])
    assert reranked(ranking, is_right, scores, 0.0).tolist() == [1, 9]
    scores[0] = [2.0, 4.0, 3.0, 1.0]
    assert reranked(ranking, is_right, scores, 0.0).tolist() == [0, 9]


def test_what_is_as_good_as_the_right_item_comes_before_it():
    ranking, is_right = two_queries()
    scores = np.array([[1.0, 1.0, 1.0 - 1e-6, 0.0], np.zeros(4)])
    assert reranked(ranking, is_right, scores, 0.0).tolist() == [1, 9]
    assert reranked(ranking, is_right, scores, 1e-4).tolist() == [2, 9]


def test_ranks_by_the_same_scores_are_those_before():
    queries, items = unit(12, 2, 8), unit(30, 1, 8, seed=1)
    pairs = [(query, item) for item, query in enumerate(np.arange(30) % 12)]
    right = right_of(queries, items, pairs)
    found = rank(queries, right, [(0, items)], 7)
    is_right = found.items % 12 == np.arange(12)[:, None]
    assert (reranked(found, is_right, found.scores, 0.0) == found.ranks).all()
    assert (found.ranks >= 7).any()
    assert (found.ranks < 7).any()
