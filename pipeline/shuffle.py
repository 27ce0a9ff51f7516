"""A shuffle that is computed, not stored: where each of n things goes, one by one, from a key.

A Feistel network over pairs of digits (Black and Rogaway, Ciphers with arbitrary finite domains,
2002): with a * b just above n a number is x + a * y, and each round adds a hash of one digit to the
other. What lands beyond n goes through once more, until it does not.
"""

import numpy as np

_ROUNDS = 16
"""With 8 not all orders of five things come equally often."""


def shuffled(places: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """What stands at these places of a shuffled range.

    Args:
        places: int64[N], each in [0, size).
        size: int64[N] or one for all: how many things are shuffled, up to 2**62.
        key: uint64[N] or one for all; equal keys and sizes make one shuffle.

    Returns:
        int64[N], each in [0, size); over all places each number once.
    """
    sizes = np.broadcast_to(np.asarray(size, np.uint64), places.shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), places.shape)
    wide = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    high = (sizes + wide - np.uint64(1)) // wide
    found = places.astype(np.uint64)
    astray = np.arange(len(places))
    while len(astray):
        at = astray
        found[at] = _network(found[at], wide[at], high[at], keys[at])
        astray = at[found[at] >= sizes[at]]
    return found.astype(np.int64)


def key_of(*parts: int | np.ndarray) -> np.ndarray:
    """uint64[N], or [1] of whole numbers alone: a hash of the parts in their order."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mixed(key ^ np.asarray(part).astype(np.uint64))
    return key


def _network(
    values: np.ndarray, wide: np.ndarray, high: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    x, y = values % wide, values // wide
    for number in range(0, _ROUNDS, 2):
        x = (x + _mixed(keys ^ _mixed(y + np.uint64(number << 56))) % wide) % wide
        y = (y + _mixed(keys ^ _mixed(x + np.uint64(number + 1 << 56))) % high) % high
    return x + wide * y


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64 bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
