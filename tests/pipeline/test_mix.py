"""Of each batch every dataset has its share, and goes through epochs of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.loader import Pairs
from pipeline.mix import MixedOrder, shares
from pipeline.order import OrderConfig

SIZES = [np.array([30, 10, 20]), np.array([9, 16])]
"""Of two datasets of 60 and 25 pictures."""


def order_of(shuffle: str = "full", seed: int = 0, weights=(0.7, 0.3)) -> MixedOrder:
    config = OrderConfig(shuffle=shuffle, num_lanes=4, window=5)
    return MixedOrder.of(SIZES, weights, config, 20, seed)


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=6), batch_size=st.integers(700, 2000)
)
def test_shares_add_up_and_are_less_than_a_picture_off(weights, batch_size):
    counts = shares(weights, batch_size)
    assert sum(counts) == batch_size
    exact = np.array(weights) / sum(weights) * batch_size
    assert (np.abs(counts - exact) < 1).all()


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ((1, 0), "mix: 1 0: a weight is not positive"),
        ((1, -2), "mix: 1 -2: a weight is not positive"),
        ((1, float("nan")), "mix: 1 nan: a weight is not positive"),
        ((0.999, 0.001), "mix: 0.001 is less than a picture of a batch of 20"),
    ],
)
def test_weights_that_give_no_mix_are_named(weights, told):
    with pytest.raises(ConfigError, match=told):
        order_of(weights=weights)


def test_a_dataset_that_is_smaller_than_its_share_is_refused():
    config = OrderConfig(shuffle="full")
    with pytest.raises(ConfigError, match="batch_size: 18, but there are 17 pictures"):
        MixedOrder.of([SIZES[0], np.array([17])], (0.1, 0.9), config, 20, 0)


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_each_batch_has_its_shares_and_each_epoch_its_pictures_once(shuffle):
    order = order_of(shuffle)
    seen = []
    for step in range(12):
        pictures, epochs = order.batch(step), order.epochs(step)
        assert (pictures >= 60).sum() == 6
        assert epochs[pictures < 60].tolist() == [step // 4] * 14
        assert epochs[pictures >= 60].tolist() == [step // 4] * 6
        seen += zip(pictures.tolist(), epochs.tolist(), strict=True)
    assert len(set(seen)) == len(seen) == 240
    assert {picture for picture, _ in seen} <= set(range(85))
    np.testing.assert_array_equal(order_of(shuffle).batch(7), order.batch(7))
    assert order.batch(0).tolist() != order_of(shuffle, seed=1).batch(0).tolist()


def test_the_datasets_are_spread_over_the_ranks():
    pictures = order_of().batch(3)
    for num_ranks in (2, 4, 5):
        second = (pictures.reshape(num_ranks, -1) >= 60).sum(axis=1)
        assert second.max() - second.min() <= 1


def test_two_datasets_are_read_as_one(tmp_path, cached):
    made = [
        (
            cached.make_features(tmp_path / f"features-{first}", shards=shards, first=first),
            cached.make_pairs(tmp_path / f"pairs-{first}", shards, first),
        )
        for first, shards in ((0, (20, 7)), (100, (16, 3)))
    ]
    several = Pairs(*made[0], "train")
    several.add(*made[1])
    one, other = (Pairs(*its, "train") for its in made)
    assert len(several) == len(one) + len(other)
    assert list(several.all_texts()) == [*one.all_texts(), *other.all_texts()]
    pictures = np.array([len(one) + 2, 0, len(one), 3, len(one) - 1])
    draw = np.array([0.9, 0, 0.4, 0.6, 0.2])
    batch = several.batch(pictures, draw)
    of_one = one.batch(pictures[[1, 3, 4]], draw[[1, 3, 4]])
    of_other = other.batch(pictures[[0, 2]] - len(one), draw[[0, 2]])
    assert torch.equal(batch.tokens[[1, 3, 4]], of_one.tokens)
    assert torch.equal(batch.tokens[[0, 2]], of_other.tokens)
    assert [batch.texts[n] for n in (1, 3, 4)] == of_one.texts
    assert [batch.texts[n] for n in (0, 2)] == of_other.texts
    assert batch.picture.tolist() == pictures.tolist()
    named = several.named(pictures, draw)
    assert [its["caption"] for its in named] == batch.texts
    assert several.texts(pictures)[2] == other.texts(np.array([0]))[0]
