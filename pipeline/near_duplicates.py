"""Near-duplicates: pictures whose perceptual hashes differ in a few bits, from columns of hashes.

Candidates come by banding. The 256 bits are cut into blocks, the blocks are shared out to groups,
and two pictures are compared where two blocks of one group are equal in both. With n blocks in g
groups, any g + 1 blocks have two of one group among them; d bits that differ leave n - d blocks
untouched, so with g = n - d - 1 nothing within distance d is missed, and by Turan's theorem no
other choice of pairs of blocks does with fewer. What is compared is then checked bit by bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import ConfigError

HASH_BITS = 256
NUM_COLOURS = 48
"""Of the coarse colours: 4 x 4 cells, red, green and blue each."""

_NUM_BLOCKS = 20
_LEADERS = 64
_CHUNK = 1 << 20
"""Rows at once where something is larger than a column."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicateConfig:
    """Which pictures count as the same, and what becomes of them."""

    near_duplicates: Literal["unite", "together", "ignore"] = "unite"
    """`unite` keeps the best picture of those that are alike, with all captions; `together` keeps
    all of them, in one split; `ignore` looks for equal pixels alone."""

    near_bits: int = 16
    """How many of the 256 bits of their hashes may differ. Up to 18 nothing is missed; beyond,
    a pair may be."""

    near_colours: int = 20
    """How far each of 4 x 4 coarse colours may differ, in levels of 0 to 255: the hash sees
    no colours."""

    leak_colours: int = 64
    """The same between a picture and one held out for evaluation: one that was made brighter or
    grey is no duplicate to unite, but a leak."""

    def __post_init__(self) -> None:
        if not 0 <= self.near_bits <= 64:
            raise ConfigError(f"near_bits: {self.near_bits} is not between 0 and 64")
        for name in ("near_colours", "leak_colours"):
            if not 0 <= getattr(self, name) <= 255:
                raise ConfigError(f"{name}: {getattr(self, name)} is not between 0 and 255")


def near_pairs(hashes: np.ndarray, colours: np.ndarray, config: NearDuplicateConfig) -> np.ndarray:
    """All pairs of pictures that are alike.

    A block pair that more than 64 pictures share (whole families of icons do) does not take the
    square of their number: each is then compared with the first 64. So give the best first.

    Args:
        hashes: uint8[N, 32], perceptual hashes, the best pictures first; fewer than 2**31.
        colours: uint8[N, 48], coarse colours.
        config: the bounds.

    Returns:
        int64[M, 2], the lower number first; ascending, none twice.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)
    blocks = _blocks(hashes)
    found = np.zeros(0, np.int64)  # the lower number in the upper 32 bits
    for one, other in _block_pairs(config.near_bits):
        new = [found]
        for low, high in _sharing(blocks[one], blocks[other]):
            for start in range(0, len(low), _CHUNK):
                a, b = low[start : start + _CHUNK], high[start : start + _CHUNK]
                bits = np.bitwise_count(words[a] ^ words[b]).sum(axis=1, dtype=np.int64)
                near = bits <= config.near_bits
                a, b = a[near], b[near]
                apart = np.abs(colours[a].astype(np.int16) - colours[b]).max(axis=1, initial=0)
                alike = apart <= config.near_colours
                new.append(a[alike] << 32 | b[alike])
        if len(new) > 1:
            found = np.unique(np.concatenate(new))
    return np.stack([found >> 32, found & 0xFFFFFFFF], axis=1)


def chains(num: int, pairs: np.ndarray) -> np.ndarray:
    """int64[num]: the first of all that hang together, through however many pairs.

    Args:
        num: how many pictures there are.
        pairs: int64[M, 2], as of `near_pairs`.
    """
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(num, num))
    _, labels = connected_components(graph, directed=False)
    firsts = np.full(num, num)
    np.minimum.at(firsts, labels, np.arange(num))
    return firsts[labels]


def stars(num: int, pairs: np.ndarray) -> np.ndarray:
    """For each picture the one that is kept in its place, itself if it is kept.

    From the first to the last, a picture is kept unless it is alike to one that is kept already;
    it then goes to the first such. So nobody is united with what it is not alike to, by no chain,
    and no two that are kept are alike.

    Args:
        num: how many pictures there are, the best first.
        pairs: int64[M, 2], the lower number first.

    Returns:
        int64[num]
    """
    gone = np.zeros(num, bool)
    low, high = pairs[:, 0], pairs[:, 1]
    while len(low):  # among the undecided, whoever has none before it is kept
        blocked = np.zeros(num, bool)
        blocked[high] = True
        gone[high[~blocked[low]]] = True
        undecided = blocked[low] & ~gone[low] & ~gone[high]
        low, high = low[undecided], high[undecided]
    kept_for = np.where(gone, num, np.arange(num))
    to_kept = pairs[~gone[pairs[:, 0]]]
    np.minimum.at(kept_for, to_kept[:, 1], to_kept[:, 0])
    return kept_for


def _block_pairs(num_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of blocks such that two hashes within `num_bits` agree in both of at least one."""
    num_groups = max(1, _NUM_BLOCKS - num_bits - 1)
    for group in range(num_groups):
        yield from combinations(range(group, _NUM_BLOCKS, num_groups), 2)


def _blocks(hashes: np.ndarray) -> list[np.ndarray]:
    """uint16[N] for each block of 12 or 13 bits."""
    bounds = np.linspace(0, HASH_BITS, _NUM_BLOCKS + 1).astype(int)
    blocks = [np.empty(len(hashes), np.uint16) for _ in range(_NUM_BLOCKS)]
    for start in range(0, len(hashes), _CHUNK):
        bits = np.unpackbits(hashes[start : start + _CHUNK], axis=1)
        for block, first, end in zip(blocks, bounds[:-1], bounds[1:], strict=True):
            packed = np.packbits(bits[:, first:end], axis=1)  # 2 bytes, zeros at the end
            block[start : start + _CHUNK] = packed[:, 0].astype(np.uint16) << 8 | packed[:, 1]
    return blocks


def _sharing(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that are equal in both blocks: int64[m] lower and int64[m] higher numbers."""
    keys = one.astype(np.uint64) << np.uint64(48) | other.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    numbers = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    keys >>= np.uint64(32)
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    sizes = np.diff(begins, append=len(keys))
    crowded = sizes > 1
    begins, sizes = begins[crowded], sizes[crowded]
    place = np.repeat(begins, sizes)  # of each one's first
    offset = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    for leader in range(min(_LEADERS, sizes.max(initial=1) - 1)):
        after = offset > leader
        place, offset = place[after], offset[after]
        yield numbers[place + leader], numbers[place + offset]
