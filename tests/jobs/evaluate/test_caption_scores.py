"""CIDEr and BLEU-4, against what can be worked out by hand."""

import math

import numpy as np
import pytest

from jobs.evaluate.caption_scores import caption_scores, words_of
from pipeline.errors import ConfigError

BOAT = ["a red boat on a lake", "two boats"]
DOGS = ["two dogs run over the grass"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red boat, on a lake.", "a red boat on a lake"),
        ("A man. He runs!  Fast...", "a man he runs fast"),
        ("the man's dog can't swim", "the man 's dog ca n't swim"),
        ('a "stop" sign (red) - old', "a stop sign red old"),
        ("black-and-white cat; 3.5 m", "black-and-white cat 3.5 m"),
        (" . ", ""),
    ],
)
def test_words_are_those_of_the_penn_treebank_without_punctuation(text, words):
    assert words_of(text) == words


def test_a_caption_like_its_one_reference_scores_ten_times_a_hundred():
    """All cosines are 1, so each of four n-gram lengths gives 1, times 10, times 100."""
    written = ["A red boat on a lake.", "two dogs run over the grass"]
    found = caption_scores(written, [[written[0]], [written[1]]], resamples=20)
    assert found.cider.value == pytest.approx(1000)
    assert found.bleu_4.value == pytest.approx(100)
    assert (found.bleu_4.low, found.bleu_4.high) == pytest.approx((100, 100))


def test_cider_by_hand():
    """Two pictures; a word in the references of both weighs nothing, one in one log 2.

    "a cat" against "a dog" and "a dog" against "a dog": of single words `a` weighs nothing and
    `dog`, in the references of one picture alone, weighs log 2, as does `cat`, in none at all. The
    first caption shares no weighing word; the second has a cosine of 1 in words and in pairs of
    words, and nothing longer: (1 + 1 + 0 + 0) / 4.
    """
    found = caption_scores(["a cat", "a dog"], [["a bird"], ["a dog"]], resamples=20)
    assert found.cider.value == pytest.approx(100 * 10 * (0 + 2 / 4) / 2)


def test_bleu_by_hand():
    """Of 6 + 5 words, 9 are right; of 5 + 4 pairs 6; of 4 + 3 triples 4; of 3 + 2 fours 2.

    The closest references have 6 and 6 words, so the brevity penalty is exp(1 - 12 / 11).
    """
    written = ["a red boat on a sea", "two dogs run over grass"]
    found = caption_scores(written, [BOAT, DOGS], resamples=20)
    right, total = (5 + 5, 4 + 3, 3 + 2, 2 + 1), (6 + 5, 5 + 4, 4 + 3, 3 + 2)
    shares = [math.log(r / t) for r, t in zip(right, total, strict=True)]
    assert found.bleu_4.value == pytest.approx(100 * math.exp(1 - 12 / 11 + sum(shares) / 4))


def test_intervals_are_of_pictures_drawn_again():
    """Twenty pictures whose captions are right and twenty whose share no word."""
    names = [f"thing{number} is over there now" for number in range(40)]
    written = names[:20] + ["nothing of that kind here at all"] * 20
    found = caption_scores(written, [[name] for name in names], resamples=400)
    halves = np.random.default_rng(3).binomial(40, 0.5, 20_000) / 40
    low, high = np.quantile(halves, [0.025, 0.975])
    assert found.cider.value == pytest.approx(500, rel=0.01)
    assert (found.cider.low, found.cider.high) == pytest.approx((1000 * low, 1000 * high), rel=0.1)
    assert found.bleu_4.low < found.bleu_4.value < found.bleu_4.high
    again = caption_scores(written, [[name] for name in names], resamples=400)
    assert again == found


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ConfigError, match="1 captions: CIDEr weighs words over two pictures"):
        caption_scores(["a dog"], [["a dog"]])
    with pytest.raises(ConfigError, match="no caption of these pictures has a word"):
        caption_scores(["a dog", "a cat"], [["."], ["", "!"]])


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider_scorer", None)
    with pytest.raises(
        ConfigError, match=r"by pycocoevalcap, .* pip install 'viaduct\[captions\]'"
    ):
        caption_scores(["a dog", "a cat"], [["a dog"], ["a cat"]])
