"""Intervals come from resampled pictures, all of a picture's trials together."""

import numpy as np
import pytest

from indexes import intervals
from indexes.intervals import Estimate, bootstrap, bootstrap_median


def one(hits, counts, **options) -> Estimate:
    (estimate,) = bootstrap(np.array(hits)[:, None], np.array(counts)[:, None], **options)
    return estimate


def test_an_interval_is_that_of_resamples_drawn_one_by_one():
    dice = np.random.default_rng(0)
    counts = dice.integers(0, 5, (40, 2))
    hits = dice.binomial(counts, 0.3)
    found = bootstrap(hits, counts, resamples=200, seed=7)
    draws = np.random.default_rng(7)
    for share in range(2):
        shares = []
        draws = np.random.default_rng(7)
        for _ in range(200):
            times = draws.multinomial(40, [1 / 40] * 40)
            pictures = [p for p in range(40) for _ in range(times[p])]
            assert len(pictures) == 40
            shares.append(
                sum(hits[p, share] for p in pictures) / sum(counts[p, share] for p in pictures)
            )
        low, high = np.quantile(shares, [0.025, 0.975])
        assert found[share].value == hits[:, share].sum() / counts[:, share].sum()
        assert (found[share].low, found[share].high) == pytest.approx((low, high), abs=1e-12)


def test_an_interval_of_independent_trials_is_the_binomial_one():
    hits = np.arange(1000) < 300
    estimate = one(hits, np.ones(1000), resamples=4000)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert estimate.value == 0.3
    assert (estimate.low, estimate.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)


def test_captions_that_hit_or_miss_together_make_a_wide_interval():
    # 200 pictures with 5 captions each; a picture's captions hit all or none of them.
    together = one(5 * (np.arange(200) < 100), np.full(200, 5))
    apart = one(np.arange(1000) < 500, np.ones(1000))
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(5**0.5, rel=0.1)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    dice = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        counts = dice.integers(1, 6, 150)
        estimate = one(dice.binomial(counts, 0.4), counts, seed=seed, resamples=300)
        held += estimate.low <= 0.4 <= estimate.high
    assert 180 <= held <= 199


def test_what_is_certain_has_no_width():
    assert one(np.full(9, 2), np.full(9, 2)) == Estimate(1.0, 1.0, 1.0)
    assert one([0, 0, 0], [3, 1, 2]) == Estimate(0.0, 0.0, 0.0)


def test_equal_seeds_give_equal_intervals_in_blocks_of_any_size(monkeypatch):
    hits, counts = np.arange(30) % 3, np.full(30, 3)
    first = one(hits, counts, seed=1)
    assert one(hits, counts, seed=1) == first
    assert one(hits, counts, seed=2) != first
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", 70)
    assert one(hits, counts, seed=1) == first


def test_a_resample_of_pictures_without_trials_says_nothing():
    estimate = one([1, 0], [1, 0], resamples=50)
    assert estimate == Estimate(1.0, 1.0, 1.0)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        one([0, 0], [0, 0])
    with pytest.raises(ValueError, match="nothing"):
        bootstrap(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="counts"):
        bootstrap(np.zeros((2, 2)), np.zeros((2, 3)))


# Medians


@pytest.mark.parametrize("num_trials", [40, 41])
def test_a_median_is_that_of_resamples_drawn_one_by_one(num_trials):
    dice = np.random.default_rng(0)
    owners = dice.integers(0, 15, num_trials)
    values = dice.integers(0, 12, num_trials)
    found = bootstrap_median(values, owners, 15, resamples=200, seed=7)
    draws = np.random.default_rng(7)
    medians = []
    for _ in range(200):
        times = draws.multinomial(15, [1 / 15] * 15)
        drawn = [v for v, p in zip(values, owners, strict=True) for _ in range(times[p])]
        medians.append(np.median(drawn))
    assert found.value == np.median(values)
    assert (found.low, found.high) == tuple(np.quantile(medians, [0.025, 0.975]))
    assert found.low < found.high


def test_a_median_does_not_depend_on_blocks(monkeypatch):
    values, owners = np.arange(60) % 17, np.repeat(np.arange(20), 3)
    first = bootstrap_median(values, owners, 20, resamples=50)
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", 130)
    assert bootstrap_median(values, owners, 20, resamples=50) == first


def test_a_median_of_few_is_told_and_of_nothing_refused():
    one_of_two = bootstrap_median(np.array([3]), np.array([1]), 2, resamples=50)
    assert one_of_two == Estimate(3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_median(np.zeros(0), np.zeros(0, np.int64), 2)
