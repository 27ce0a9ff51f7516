"""Diversity is what one counts by hand, in one part or in several."""

import pytest

from pipeline.diversity import Diversity

TEXTS = ["a red boat", "A red boat", "a boat red", "", "a boat a boat", "sea"]


def test_words_pairs_and_equal_captions_are_counted():
    told = Diversity.of(TEXTS).to_json()
    assert told == {
        "captions": 6,
        "mean_words": round(14 / 6, 6),
        "distinct_1": round(4 / 14, 6),  # a, red, boat, sea
        # a red, red boat (twice each); a boat, boat red; a boat, boat a, a boat
        "distinct_2": round(5 / 9, 6),
        "identical_share": round(2 / 6, 6),
    }


def test_pairs_never_cross_captions():
    assert Diversity.of(["a", "b"]).to_json()["distinct_2"] == 0
    assert len(Diversity.of(["a b", "b a"]).word_pairs) == 2


def test_nothing_is_as_diverse_as_nothing():
    assert set(Diversity.of([]).to_json().values()) == {0}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_parts_add_up_to_the_whole(size):
    texts = [f"{text} {number % 3}" for number in range(40) for text in TEXTS]
    parts = [Diversity.of(texts[at : at + size]) for at in range(0, len(texts), size)]
    added, whole = Diversity.total(iter(parts)), Diversity.of(texts)
    assert added.to_json() == whole.to_json()
    for name in ("words", "word_pairs", "texts", "counts"):
        assert getattr(added, name).tolist() == getattr(whole, name).tolist()
