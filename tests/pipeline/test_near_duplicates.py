"""Pairs that are alike are found as by comparing all with all, and clustered by the stated rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.near_duplicates import NearDuplicateConfig, chains, near_pairs, stars

steady = settings(max_examples=200, deadline=None, derandomize=True)


def slow_pairs(hashes: np.ndarray, colours: np.ndarray, config: NearDuplicateConfig) -> list[list]:
    found = []
    for a in range(len(hashes)):
        for b in range(a + 1, len(hashes)):
            bits = sum(int(x ^ y).bit_count() for x, y in zip(hashes[a], hashes[b], strict=True))
            apart = max(abs(int(x) - int(y)) for x, y in zip(colours[a], colours[b], strict=True))
            if bits <= config.near_bits and apart <= config.near_colours:
                found.append([a, b])
    return found


def families(count: int, children: int, most_bits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes, and of each some with up to `most_bits` bits turned; in random order."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (count, 1, 256), dtype=np.uint8)
    turned = np.zeros((count, children + 1, 256), np.uint8)
    for one in turned[:, 1:].reshape(-1, 256):
        one[rng.choice(256, rng.integers(0, most_bits + 1), replace=False)] = 1
    hashes = np.packbits((bits ^ turned).reshape(-1, 256), axis=1)
    colours = rng.integers(0, 256, (count, 1, 48)) + rng.integers(-11, 12, (1, children + 1, 48))
    order = rng.permutation(len(hashes))
    return hashes[order], colours.clip(0, 255).astype(np.uint8).reshape(-1, 48)[order]


@pytest.mark.parametrize("near_bits", [0, 1, 7, 16, 18])
def test_up_to_18_bits_the_pairs_are_those_of_comparing_all_with_all(near_bits):
    hashes, colours = families(25, 4, 24, seed=near_bits)
    config = NearDuplicateConfig(near_bits=near_bits)
    expected = slow_pairs(hashes, colours, config)
    assert near_pairs(hashes, colours, config).tolist() == expected
    assert near_bits < 7 or len(expected) > 10


def test_bits_turned_in_as_many_blocks_as_there_can_be_are_found():
    """The worst case for banding: no two of the bits that differ lie in one block."""
    for near_bits in range(19):
        places = np.linspace(0, 255, 20).astype(int)
        for start in range(20 - near_bits):
            bits = np.zeros((2, 256), np.uint8)
            bits[1, places[start : start + near_bits]] = 1
            pair = near_pairs(
                np.packbits(bits, axis=1),
                np.zeros((2, 48), np.uint8),
                NearDuplicateConfig(near_bits=near_bits),
            )
            assert pair.tolist() == [[0, 1]]


def test_beyond_18_bits_few_pairs_are_missed():
    hashes, colours = families(300, 1, 31, seed=3)
    config = NearDuplicateConfig(near_bits=31, near_colours=255)
    found = near_pairs(hashes, colours, config)
    assert 0.97 * 300 <= len(found) <= 300


def test_a_crowd_with_one_hash_is_compared_with_its_best_alone():
    hashes, colours = np.zeros((1000, 32), np.uint8), np.zeros((1000, 48), np.uint8)
    pairs = near_pairs(hashes, colours, NearDuplicateConfig())
    assert len(pairs) < 64 * 1000  # not the half million of all with all
    assert stars(1000, pairs).tolist() == [0] * 1000


def test_colours_tell_pictures_of_one_shape_apart():
    hashes = np.zeros((3, 32), np.uint8)
    colours = np.zeros((3, 48), np.uint8)
    colours[1, 7], colours[2, 7] = 20, 41
    assert near_pairs(hashes, colours, NearDuplicateConfig()).tolist() == [[0, 1]]


def test_no_picture_and_one_picture_make_no_pairs():
    for count in (0, 1):
        hashes, colours = np.zeros((count, 32), np.uint8), np.zeros((count, 48), np.uint8)
        pairs = near_pairs(hashes, colours, NearDuplicateConfig())
        assert pairs.shape == (0, 2)
        assert chains(count, pairs).tolist() == stars(count, pairs).tolist() == [0] * count


GRAPHS = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.sets(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
            .filter(lambda pair: pair[0] != pair[1])
            .map(lambda pair: tuple(sorted(pair))),
            max_size=24,
        ),
    )
)


@steady
@given(graph=GRAPHS)
def test_stars_are_what_a_walk_from_the_best_down_gives(graph):
    count, pairs = graph
    kept_for: list[int] = []
    for one in range(count):
        alike = (k for k in range(one) if kept_for[k] == k and (k, one) in pairs)
        kept_for.append(next(alike, one))
    array = np.array(sorted(pairs), int).reshape(-1, 2)
    assert stars(count, array).tolist() == kept_for


@steady
@given(graph=GRAPHS)
def test_chains_are_what_hangs_together(graph):
    count, pairs = graph
    first = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            first[a] = first[b] = min(first[a], first[b])
    assert chains(count, np.array(sorted(pairs), int).reshape(-1, 2)).tolist() == first


@pytest.mark.parametrize(
    "wrong", [{"near_bits": -1}, {"near_bits": 65}, {"near_colours": 256}, {"leak_colours": -1}]
)
def test_a_configuration_that_makes_no_sense_is_refused_with_its_value(wrong):
    key, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{key}: {value} is not between"):
        NearDuplicateConfig(**wrong)
