"""The order of training: each epoch everything once, and nothing but a function of the step."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.order import (
    HeldOutBatch,
    Order,
    OrderConfig,
    dropout_seed,
    held_out_batches,
    writing_seeds,
)


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    """int64[steps, batch]"""
    first = epoch * order.steps_per_epoch
    return np.stack([order.batch(first + at) for at in range(order.steps_per_epoch)])


@pytest.mark.parametrize(("num_pictures", "batch_size"), [(7, 7), (12, 4), (13, 4), (5, 1), (1, 1)])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_holds_every_picture_once_but_for_what_fills_no_batch(
    num_pictures, batch_size, epoch
):
    order = Order(num_pictures, batch_size, seed=3)
    assert order.steps_per_epoch == num_pictures // batch_size
    shown = epoch_of(order, epoch).ravel().tolist()
    assert len(set(shown)) == len(shown) == num_pictures // batch_size * batch_size
    assert set(shown) <= set(range(num_pictures))


def test_over_the_epochs_nothing_is_left_out():
    order = Order(13, 4, seed=0)
    assert {int(n) for epoch in range(20) for n in epoch_of(order, epoch).ravel()} == set(range(13))


def test_epochs_seeds_and_steps_have_other_orders():
    order = Order(64, 8, seed=0)
    epochs = [epoch_of(order, epoch).ravel().tolist() for epoch in range(3)]
    epochs.append(epoch_of(Order(64, 8, seed=1), 0).ravel().tolist())
    epochs.append(list(range(64)))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def draws(order: Order, step: int) -> list[np.ndarray]:
    others = [order.caption_draw(step), order.negative_draw(step), order.split_draw(step)]
    return [order.batch(step), *others]


def test_a_step_is_the_same_whatever_was_asked_for_before():
    one, other = Order(30, 6, seed=7), Order(30, 6, seed=7)
    forwards = {step: draws(one, step) for step in range(12)}
    for step in (11, 3, 3, 0):
        for before, now in zip(forwards[step], draws(other, step), strict=True):
            np.testing.assert_array_equal(before, now)


def test_draws_are_shares_that_differ_by_step_seed_and_purpose():
    order = Order(100, 50, seed=0)
    found = [order.caption_draw(0), order.caption_draw(1), *order.negative_draw(0)]
    found += [*order.negative_draw(1), Order(100, 50, seed=1).caption_draw(0)]
    found += [order.split_draw(0), order.split_draw(1), Order(100, 50, seed=1).split_draw(0)]
    assert order.caption_draw(0).shape == (50,)
    assert order.negative_draw(0).shape == (2, 50)
    assert all((values >= 0).all() and (values < 1).all() for values in found)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    assert len({values.tobytes() for values in found}) == len(found)


SIZES = np.array([30, 10, 40, 0, 16])


def order_of(shuffle: str, seed: int = 0) -> Order:
    return Order.of(SIZES, OrderConfig(shuffle=shuffle, num_lanes=8, window=5), 24, seed)


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_global_batches_are_the_same_whoever_asks_and_where_it_goes_on(shuffle):
    """Ranks 1, 2 and 4, each run stopped after some steps and gone on with by another number."""
    unbroken = [order_of(shuffle).batch(step).tolist() for step in range(11)]
    assert len({str(batch) for batch in unbroken}) == 11
    for stop in range(11):
        for before in (1, 2, 4):
            for after in (1, 2, 4):
                seen = []
                for steps, ranks in ((range(stop), before), (range(stop, 11), after)):
                    each = [order_of(shuffle) for _ in range(ranks)]
                    size = 24 // ranks
                    seen += [
                        [n for r, o in enumerate(each) for n in o.batch(step)[r * size :][:size]]
                        for step in steps
                    ]
                assert seen == unbroken


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_each_picture_comes_once_an_epoch_and_knows_which(shuffle):
    order = order_of(shuffle)
    assert order.steps_per_epoch == 4
    seen = [
        (int(picture), int(epoch))
        for step in range(12)
        for picture, epoch in zip(order.batch(step), order.epochs(step), strict=True)
    ]
    assert len(set(seen)) == len(seen) == 288
    assert {epoch for _, epoch in seen} == {0, 1, 2}
    assert order.batch(0).tolist() != order_of(shuffle, seed=1).batch(0).tolist()


def test_lanes_too_short_for_a_batch_are_named():
    with pytest.raises(ConfigError, match="num_lanes: 90 lanes of 1 pictures each hold no batch"):
        Order.of(SIZES, OrderConfig(shuffle="lanes", num_lanes=90), 96, 0)


def test_auto_shuffles_whole_what_is_local():
    asked = OrderConfig()
    assert asked.resolved([]).lasting == {"shuffle": "full"}
    lanes = {"shuffle": "lanes", "num_lanes": 64, "window": 2048}
    assert asked.resolved(["s3://bucket/features"]).lasting == lanes
    assert OrderConfig(shuffle="lanes").resolved([]).lasting == lanes


def test_a_full_shuffle_of_what_is_not_local_says_why_not():
    with pytest.raises(ConfigError, match="shuffle: full, but s3://b/f is not local"):
        OrderConfig(shuffle="full").resolved(["s3://b/f"])


@pytest.mark.parametrize("name", ["num_lanes", "window"])
def test_lanes_and_windows_are_not_empty(name):
    with pytest.raises(ConfigError, match=f"{name}: 0 is not positive"):
        OrderConfig(**{name: 0})


@pytest.mark.parametrize("num_pictures", [0, 1, 7])
def test_fewer_pictures_than_a_batch_are_refused(num_pictures):
    message = rf"batch_size: 8, but there are {num_pictures} pictures"
    with pytest.raises(ConfigError, match=message):
        Order(num_pictures, 8, seed=0)


def test_dropout_has_a_seed_of_its_own_for_every_seed_step_and_rank():
    seeds = [dropout_seed(s, t, r) for s in range(4) for t in range(20) for r in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert dropout_seed(2, 11, 1) == dropout_seed(2, 11, 1)


# Held-out pictures


def told(part: HeldOutBatch) -> list[list[float]]:
    draws = (part.caption_draw, part.negative_draw, part.split_draw)
    return [part.pictures.tolist(), *(draw.tolist() for draw in draws)]


@pytest.mark.parametrize(("num_pictures", "at_most"), [(1, 4), (4, 4), (5, 4), (9, 4), (64, 16)])
def test_held_out_pictures_are_all_looked_at_once_in_even_batches(num_pictures, at_most):
    parts = list(held_out_batches(num_pictures, at_most))
    assert sorted(n for part in parts for n in part.pictures.tolist()) == list(range(num_pictures))
    sizes = [len(part.pictures) for part in parts]
    assert max(sizes) <= at_most
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert part.caption_draw.shape == (len(part.pictures),)
        assert part.split_draw.shape == (len(part.pictures),)
        assert part.negative_draw.shape == (2, len(part.pictures))
        assert ((part.negative_draw >= 0) & (part.negative_draw < 1)).all()


def test_held_out_batches_are_the_same_each_time_and_mixed():
    first, second = ([told(part) for part in held_out_batches(50, 8)] for _ in range(2))
    assert first == second
    assert [n for part in first for n in part[0]] != list(range(50))
    assert len({str(part[1]) for part in first}) == len(first)


# What a captioner draws


def test_seeds_are_those_of_picture_and_job_alone():
    uids = [bytes(range(16)), bytes(range(1, 17)), bytes(16)]
    seeds = writing_seeds(7, uids)
    assert len(set(seeds)) == 3
    assert writing_seeds(7, uids[::-1]) == seeds[::-1]
    assert not set(writing_seeds(8, uids)) & set(seeds)
    assert writing_seeds(7, []) == []
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    assert np.unique([seed & 0xFFFFFFFF for seed in seeds]).size == 3  # what torch takes of it
