"""Recall is what going through every pair by hand gives, with ties counted against us."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import ranking
from indexes.exact import on_grid
from indexes.recall import Ranks, chance, ranks, recall

FEW = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0.6, 0, 0.8], [-1, 0, 0]], np.float32)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_hand(pictures, texts, owners) -> tuple[list[int], list[int]]:
    """Ranks of pictures and of captions, one pair of vectors after the other."""

    def similarity(picture, text) -> float:
        return max(math.fsum(a * b for a, b in zip(q, text, strict=True)) for q in picture)

    pictures, texts = on_grid(pictures).tolist(), on_grid(texts).tolist()
    scores = [[similarity(picture, text) for text in texts] for picture in pictures]
    of_pictures = []
    for picture, row in enumerate(scores):
        right = [s for s, owner in zip(row, owners, strict=True) if owner == picture]
        wrong = [s for s, owner in zip(row, owners, strict=True) if owner != picture]
        of_pictures.append(sum(s >= max(right) for s in wrong) if right else -1)
    of_captions = []
    for caption, owner in enumerate(owners):
        column = [row[caption] for row in scores]
        of_captions.append(
            sum(s >= column[owner] for picture, s in enumerate(column) if picture != owner)
        )
    return of_pictures, of_captions


def found(pictures, texts, owners) -> tuple[list[int], list[int]]:
    result = ranks(pictures, texts, np.array(owners, np.int64))
    return result.pictures.tolist(), result.captions.tolist()


@st.composite
def tied(draw):
    count, queries = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    owners = draw(st.lists(st.integers(0, count - 1), max_size=15))
    size = count * queries
    numbers = st.integers(0, len(FEW) - 1)
    pictures = FEW[draw(st.lists(numbers, min_size=size, max_size=size))]
    texts = FEW[draw(st.lists(numbers, min_size=len(owners), max_size=len(owners)))]
    return pictures.reshape(count, queries, 3), texts.reshape(-1, 3), owners


@given(tied())
@settings(max_examples=300)
def test_ranks_are_those_by_hand_however_many_ties(case):
    assert found(*case) == by_hand(*case)


@pytest.mark.parametrize(("side", "vectors"), [(1, 1), (7, 40), (30, 9), (512, 1 << 14)])
def test_ranks_do_not_depend_on_the_blocks(monkeypatch, side, vectors):
    dice = np.random.default_rng(0)
    owners = dice.integers(0, 30, 70).tolist()  # some pictures have no caption, in no order
    pictures, texts = unit(30, 3, 8), unit(70, 8, seed=1)
    pictures[20:25] = pictures[:5]
    texts[50:] = texts[:20]
    monkeypatch.setattr(ranking, "_SIDE", side)
    monkeypatch.setattr(ranking, "_VECTORS_AT_ONCE", vectors)
    assert found(pictures, texts, owners) == by_hand(pictures, texts, owners)


def test_one_vector_a_picture_needs_no_axis_of_its_own():
    owners = [0, 0, 1, 2, 3, 3]
    pictures, texts = unit(4, 8), unit(6, 8, seed=1)
    assert found(pictures, texts, owners) == found(pictures[:, None], texts, owners)


def test_a_model_that_sees_nothing_has_recall_zero_not_chance():
    owners = np.repeat(np.arange(20), 2)
    vector = unit(1, 33)
    result = ranks(np.repeat(vector, 20, 0), np.repeat(vector, 40, 0), owners)
    assert set(result.pictures.tolist()) == {38}
    assert set(result.captions.tolist()) == {19}
    nothing = recall(result)
    assert {e.value for e in [*nothing.picture_to_text.values()]} == {0.0}
    assert {e.value for e in [*nothing.text_to_picture.values()]} == {0.0}


def test_a_perfect_model_has_recall_one():
    owners = np.repeat(np.arange(20), 2)
    pictures = unit(20, 3, 16)
    perfect = recall(ranks(pictures, pictures[owners, 1], owners))
    assert {e.value for e in perfect.picture_to_text.values()} == {1.0}
    assert {(e.low, e.high) for e in perfect.text_to_picture.values()} == {(1.0, 1.0)}


def test_any_of_a_pictures_captions_will_do():
    # The first caption of picture 0 is at the other end; its second is right beside it.
    pictures = np.array([[1, 0], [0, 1]], np.float32)
    texts = np.array([[-1, 0], [1, 0], [0, 1]], np.float32)
    result = ranks(pictures, texts, np.array([0, 0, 1]))
    assert result.pictures.tolist() == [0, 0]
    assert result.captions.tolist() == [1, 0, 0]


def test_recall_counts_ranks_below_k():
    owners = np.array([0, 0, 0, 2, 3])
    result = Ranks(np.array([0, -1, 4, 5]), np.array([0, 0, 9, 10, 1]), owners)
    made = recall(result, at=(1, 5, 10))
    assert [made.picture_to_text[k].value for k in (1, 5, 10)] == [1 / 3, 2 / 3, 1]
    assert [made.text_to_picture[k].value for k in (1, 5, 10)] == [2 / 5, 3 / 5, 4 / 5]
    for estimate in [*made.picture_to_text.values(), *made.text_to_picture.values()]:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_median_ranks_count_from_one_and_are_of_queries():
    owners = np.array([0, 0, 0, 2, 3])
    made = recall(Ranks(np.array([0, -1, 4, 5]), np.array([0, 0, 9, 10, 1]), owners))
    assert made.picture_median.value == 5  # of 1, 5 and 6
    assert made.text_median.value == 2  # of 1, 1, 10, 11 and 2
    for estimate in (made.picture_median, made.text_median):
        assert 1 <= estimate.low <= estimate.value <= estimate.high <= 11


def test_pictures_without_captions_are_not_among_those_that_are_resampled():
    dice = np.random.default_rng(0)
    has = np.array([True, False] * 15 + [False, True, True])
    owners = np.repeat(np.flatnonzero(has), dice.integers(1, 5, has.sum()))
    of_pictures, of_captions = dice.integers(0, 12, 33), dice.integers(0, 12, len(owners))
    made = recall(Ranks(np.where(has, of_pictures, -1), of_captions, owners))
    numbers = np.searchsorted(np.flatnonzero(has), owners)
    assert made == recall(Ranks(of_pictures[has], of_captions, numbers))


def test_intervals_are_of_pictures_with_all_their_captions():
    # Picture 0 has nine captions that hit, the nine others one each that misses. A resample has
    # picture 0 n times, and with it 9n of 9n + (10 - n) captions.
    owners = np.array([0] * 9 + list(range(1, 10)))
    result = Ranks(np.zeros(10, np.int64), np.array([0] * 9 + [99] * 9), owners)
    made = recall(result, at=(1,), resamples=5000)
    draws = np.random.default_rng(1).binomial(10, 0.1, 100_000)
    low, high = np.quantile(9 * draws / (9 * draws + 10 - draws), [0.025, 0.975])
    estimate = made.text_to_picture[1]
    assert (estimate.value, estimate.low, estimate.high) == (0.5, low, high)


def test_json_is_as_evaluation_json_has_it():
    owners = np.repeat(np.arange(3), 2)
    made = json.loads(json.dumps(recall(ranks(unit(3, 4), unit(6, 4), owners)).to_json()))
    medians = made.pop("median_rank")
    assert list(made) == list(medians) == ["picture_to_text", "text_to_picture"]
    for direction in made.values():
        assert list(direction) == ["1", "5", "10"]
        assert all(list(share) == ["value", "low", "high"] for share in direction.values())
    assert all(list(median) == ["value", "low", "high"] for median in medians.values())


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7, 10])
@pytest.mark.parametrize("counts", [[1, 1, 1], [3, 1, 2], [0, 4, 2, 1], [7]])
def test_chance_is_that_of_all_possible_draws(counts, k):
    owners = [picture for picture, count in enumerate(counts) for _ in range(count)]
    num_pictures = len(counts)
    shares = []
    draws = list(combinations(range(len(owners)), min(k, len(owners))))
    for picture in set(owners):
        hits = [any(owners[caption] == picture for caption in draw) for draw in draws]
        shares.append(sum(hits) / len(hits))
    made = chance(np.array(owners), num_pictures, at=(k,))
    by_text = made.text_to_picture[k]
    assert made.picture_to_text[k].value == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert by_text.value == min(1, k / num_pictures)
    assert by_text.low == by_text.value == by_text.high


@pytest.mark.parametrize("counts", [[1, 1, 1], [3, 1, 2], [0, 4, 2, 1], [7], [1, 9]])
def test_the_median_rank_of_chance_is_the_first_that_half_of_all_orders_reach(counts):
    owners = [picture for picture, count in enumerate(counts) for _ in range(count)]
    made = chance(np.array(owners), len(counts), at=range(1, len(owners) + 1))
    reached = [k for k, found in made.picture_to_text.items() if found.value >= 0.5]
    assert made.picture_median.value == reached[0]
    assert made.text_median.value == np.median(range(1, len(counts) + 1))


def test_chance_is_what_random_vectors_reach():
    owners = np.repeat(np.arange(40), [1, 2, 3, 4] * 10)
    expected = chance(owners, 40)
    sums = np.zeros(3), np.zeros(3)
    for seed in range(60):
        made = recall(
            ranks(unit(40, 16, seed=seed), unit(100, 16, seed=1000 + seed), owners), resamples=1
        )
        for total, side in zip(sums, (made.picture_to_text, made.text_to_picture), strict=True):
            total += [side[k].value for k in (1, 5, 10)]
    for total, side in zip(sums, (expected.picture_to_text, expected.text_to_picture), strict=True):
        assert total / 60 == pytest.approx([side[k].value for k in (1, 5, 10)], abs=0.02)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="texts are"):
        ranks(unit(2, 3, 4), unit(3, 4), np.array([0, 1]))
    with pytest.raises(ValueError, match="texts are"):
        ranks(unit(2, 3, 4), unit(2, 5), np.array([0, 1]))
    for owners in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="owners"):
            ranks(unit(2, 3, 4), unit(2, 4), np.array(owners))
    with pytest.raises(ValueError, match="normalised"):
        ranks(unit(2, 3, 4) * 2, unit(2, 4), np.array([0, 1]))
    nothing = ranks(unit(2, 3, 4), unit(0, 4), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="nothing"):
        recall(nothing)
    with pytest.raises(ValueError, match="nothing"):
        chance(np.zeros(0, np.int64), 3)
