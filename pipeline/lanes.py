"""An order for pictures that come shard by shard: lanes, each shuffled within windows."""

import math
from functools import lru_cache

import numpy as np

from pipeline.errors import ConfigError
from pipeline.shuffle import key_of, shuffled

_SHARDS, _WINDOW = range(2)
"""What is shuffled; part of its key."""


class Lanes:
    """An epoch is all shards in an order of chance, one after the other, cut into equal lanes.

    Each lane goes through its stretch window by window, and a window's pictures are shuffled. A
    global batch takes equally from every lane, and holds what it takes in the order of lanes: where
    the number of ranks divides both that of lanes and the batch, each rank reads lanes of its own.
    What a lane needs at a time are the shards that its window lies in.

    Args:
        shard_sizes: int64[S], pictures in each shard; pictures are numbered along them.
        num_lanes: as said.
        window: pictures in each window of a lane, but in its last one.
    """

    def __init__(self, shard_sizes: np.ndarray, num_lanes: int, window: int) -> None:
        self.num_lanes = num_lanes
        self.window = window
        self.lane_size = int(shard_sizes.sum()) // num_lanes
        """Pictures of each lane in an epoch; which ones are left over changes."""
        self._sizes = shard_sizes
        self._epoch = lru_cache(2)(self._shuffled_shards)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch.

        Raises:
            ConfigError: there is none.
        """
        steps = self.lane_size * self.num_lanes // batch_size
        if steps == 0:
            raise ConfigError(
                f"num_lanes: {self.num_lanes} lanes of {self.lane_size} pictures each hold no "
                f"batch of {batch_size}; take fewer, or a smaller batch_size"
            )
        return steps

    def batch(self, key: int, epoch: int, at: int, batch_size: int) -> np.ndarray:
        """int64[batch_size]: the pictures of a batch.

        Args:
            key: of all that is shuffled here.
            epoch, at: the batch's epoch, and its number in it.
            batch_size: the same in each call.
        """
        # Where lanes do not divide the batch, groups of lanes do: a group takes equally many in
        # each step, and from one of its lanes after the other.
        num_groups = math.gcd(batch_size, self.num_lanes)
        lanes, size = self.num_lanes // num_groups, batch_size // num_groups
        group, taken = np.divmod(np.arange(batch_size), size)
        place, lane = np.divmod(at * size + taken, lanes)
        lane += group * lanes
        along = lane * self.lane_size + self._mixed(key, epoch, lane, place)
        ends, shift = self._epoch(key, epoch)
        return along + shift[np.searchsorted(ends, along, side="right")]

    def _mixed(self, key: int, epoch: int, lane: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Where in its lane a picture is taken from, for places along the lane."""
        number, within = np.divmod(place, self.window)
        first = number * self.window
        size = np.minimum(self.window, self.lane_size - first)
        return first + shuffled(within, size, key_of(key, _WINDOW, epoch, lane, number))

    def _shuffled_shards(self, key: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of an epoch's shards in their order: where each ends, and how to tell its pictures.

        Returns:
            int64[S]: the place along the epoch at which each shard ends.
            int64[S]: what gives a picture's number, added to its place.
        """
        sizes = self._sizes
        shards = shuffled(np.arange(len(sizes)), len(sizes), key_of(key, _SHARDS, epoch))
        ends = np.cumsum(sizes[shards])
        return ends, np.cumsum(sizes)[shards] - ends
