"""Held-out pictures that were trained on are found by each of the three ways, and no others."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.leaks import find_leaks
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.schemas import HASHES

NEAR = NearDuplicateConfig()
GREY = bytes([100] * 48)


def row(uid: int, pixels: int | None, phash: bytes | None, colours: bytes = GREY) -> dict:
    return {
        "uid": uid.to_bytes(16, "big"),
        "pixels": None if pixels is None else pixels.to_bytes(16, "big"),
        "stored_bytes": 1,
        "original_pixels": 1,
        "num_captions": 1,
        "phash": phash,
        "colours": colours,
    }


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=HASHES)


def hash_of(number: int, turned: int = 0) -> bytes:
    """256 random bits, of which the first `turned` are turned."""
    bits = np.random.default_rng(number).integers(0, 2, 256, dtype=np.uint8)
    bits[:turned] ^= 1
    return np.packbits(bits).tobytes()


def found(held_out: list[dict], trained: list[dict]) -> tuple[list[bool], ...]:
    leaks = find_leaks(table(held_out), table(trained), NEAR)
    return leaks.same_uid.tolist(), leaks.same_pixels.tolist(), leaks.alike.tolist()


def test_each_leak_is_of_one_kind_the_surest():
    trained = [row(n, 100 + n, hash_of(n)) for n in range(5)]
    held_out = [
        row(0, 100, hash_of(0)),  # all three
        row(11, 101, hash_of(1)),  # another address
        row(12, 112, hash_of(2, turned=16)),  # other pixels
        row(13, 113, hash_of(3, turned=17)),  # too far
        row(14, 114, hash_of(14)),
    ]
    assert found(held_out, trained) == (
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, False, True, False, False],
    )
    assert (
        find_leaks(table(held_out), table(trained), NEAR).any.tolist() == [True] * 3 + [False] * 2
    )


def test_held_out_pictures_that_are_alike_among_themselves_are_no_leaks():
    held_out = [row(1, 1, hash_of(1)), row(2, 2, hash_of(1)), row(3, 3, hash_of(1))]
    trained = [row(4, 4, hash_of(4)), row(5, 5, hash_of(4))]
    assert not any(map(any, found(held_out, trained)))


def test_colours_may_differ_as_far_as_curate_lets_leaks_differ():
    trained = [row(1, 1, hash_of(1))]
    held_out = [row(2, 2, hash_of(1), bytes([164] * 48)), row(3, 3, hash_of(1), bytes([165] * 48))]
    assert found(held_out, trained)[2] == [True, False]


def test_what_has_no_hash_or_no_pixels_is_alike_to_nothing():
    nothing = row(2, None, None)
    assert not any(map(any, found([nothing], [row(1, None, None)])))
    assert not any(map(any, found([nothing], [])))
    assert found([], [row(1, 1, hash_of(1))]) == ([], [], [])


@given(
    st.lists(st.integers(0, 6), max_size=6),
    st.lists(st.integers(0, 6), max_size=6),
    st.integers(0, 40),
)
@settings(max_examples=60)
def test_alike_is_as_by_comparing_all_with_all(held_out, trained, turned):
    mine = [row(1 + at, 1 + at, hash_of(n, turned)) for at, n in enumerate(held_out)]
    theirs = [row(101 + at, 101 + at, hash_of(n)) for at, n in enumerate(trained)]

    def apart(one: dict, other: dict) -> int:
        both = zip(one["phash"], other["phash"], strict=True)
        return sum((a ^ b).bit_count() for a, b in both)

    expected = [any(apart(one, other) <= 16 for other in theirs) for one in mine]
    assert found(mine, theirs)[2] == expected


def test_a_crowd_of_one_shape_in_training_hides_no_leak():
    trained = [row(1000 + n, 1000 + n, hash_of(1, turned=n % 3)) for n in range(200)]
    assert found([row(1, 1, hash_of(1, turned=16))], trained)[2] == [True]


@pytest.mark.parametrize("near_bits", [0, 8])
def test_the_bound_is_as_configured(near_bits):
    held_out = [row(1, 1, hash_of(1, near_bits)), row(2, 2, hash_of(1, near_bits + 1))]
    near = NearDuplicateConfig(near_bits=near_bits)
    leaks = find_leaks(table(held_out), table([row(9, 9, hash_of(1))]), near)
    assert leaks.alike.tolist() == [True, False]
