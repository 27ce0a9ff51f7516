"""Lanes show each picture once an epoch, read few shards at a time, and know nothing of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.lanes import Lanes

SIZES = np.array([9, 0, 14, 30, 1, 22, 17, 8, 25, 30])
"""Pictures in each shard; 156 in all."""


def epoch_of(lanes: Lanes, epoch: int, batch_size: int, key: int = 1) -> np.ndarray:
    """int64[steps, batch]"""
    steps = range(lanes.steps_per_epoch(batch_size))
    return np.stack([lanes.batch(key, epoch, at, batch_size) for at in steps])


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    num_lanes=st.integers(1, 12),
    window=st.integers(1, 50),
    batch_size=st.integers(1, 12),
    epoch=st.integers(0, 3),
)
def test_an_epoch_shows_no_picture_twice_and_nearly_all(
    sizes, num_lanes, window, batch_size, epoch
):
    lanes = Lanes(np.array(sizes), num_lanes, window)
    if sum(sizes) // num_lanes * num_lanes < batch_size:
        with pytest.raises(ConfigError, match=f"num_lanes: {num_lanes} lanes"):
            lanes.steps_per_epoch(batch_size)
        return
    shown = epoch_of(lanes, epoch, batch_size).ravel().tolist()
    assert len(set(shown)) == len(shown) > sum(sizes) - num_lanes - batch_size
    assert set(shown) <= set(range(sum(sizes)))


def test_over_the_epochs_nothing_is_left_out():
    lanes = Lanes(SIZES, 8, 6)
    shown = {int(n) for epoch in range(12) for n in epoch_of(lanes, epoch, 20).ravel()}
    assert shown == set(range(SIZES.sum()))


def test_epochs_and_keys_have_other_orders():
    lanes = Lanes(SIZES, 4, 10)
    made = [epoch_of(lanes, e, 12, key).ravel().tolist() for e, key in ((0, 1), (1, 1), (0, 2))]
    assert len({tuple(one) for one in [*made, list(range(len(made[0])))]}) == 4


@pytest.mark.parametrize(("num_lanes", "batch_size"), [(4, 12), (8, 12), (8, 4), (6, 20), (1, 5)])
def test_a_batch_takes_equally_from_every_lane(num_lanes, batch_size):
    """Lane i of an epoch is the i-th stretch of its shards in their order."""
    lanes = Lanes(SIZES, num_lanes, 7)
    ends, shift = lanes._epoch(1, 3)
    place_of = {
        int(place + shift[np.searchsorted(ends, place, side="right")]): place
        for place in range(SIZES.sum())
    }
    taken = np.zeros(num_lanes, int)
    for at in range(lanes.steps_per_epoch(batch_size)):
        batch = lanes.batch(1, 3, at, batch_size)
        lane = np.array([place_of[n] // lanes.lane_size for n in batch.tolist()])
        counts = np.bincount(lane, minlength=num_lanes)
        assert counts.max() - counts.min() <= 1
        taken += counts
        assert taken.max() - taken.min() <= 1
        for num_ranks in (1, 2, 4):  # those that divide both own lanes
            if batch_size % num_ranks == 0 == num_lanes % num_ranks:
                owner = lane // (num_lanes // num_ranks)
                assert (
                    owner.tolist() == np.repeat(range(num_ranks), len(lane) // num_ranks).tolist()
                )


def test_a_lane_goes_through_its_shards_window_by_window():
    sizes = np.full(40, 10)
    lanes = Lanes(sizes, 4, 10)  # a lane is 10 shards, a window one or two of them
    shards = epoch_of(lanes, 0, 4).reshape(-1, 4) // 10  # a column is a lane
    for lane in shards.T:
        runs = [shard for shard, _ in itertools.groupby(lane.tolist())]
        assert len(set(lane.tolist())) == 10
        for first in range(0, 100, 10):
            assert len(set(lane[first : first + 10].tolist())) == 1
        assert len(runs) == 10
    within = epoch_of(lanes, 0, 4)[:10, 0] % 10
    assert sorted(within.tolist()) == list(range(10))
    assert within.tolist() != list(range(10))
