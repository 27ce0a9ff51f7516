"""The order in which pictures are trained on: a function of seed, epoch and step, never stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError

_ORDER, _CAPTION, _NEGATIVES, _DROPOUT, _SPLIT = range(5)
"""What a generator is for; part of its seed, so that no two share their numbers."""


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one rank in one step: the same whatever happened before."""
    return int(np.random.default_rng((seed, _DROPOUT, step, rank)).integers(2**63))


@dataclass(frozen=True)
class Order:
    """Global batches of a data set of `num_pictures`, the same on any number of ranks.

    An epoch is a full shuffle without what does not fill its last batch, so that no picture is
    twice in a batch.
    """

    num_pictures: int
    batch_size: int
    """Pictures in a global batch."""
    seed: int

    def __post_init__(self) -> None:
        if self.num_pictures < self.batch_size:
            raise ConfigError(
                f"batch_size: {self.batch_size}, but there are {self.num_pictures} pictures to "
                "train on"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_pictures // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """int64[batch_size]: the pictures of a step, counted from 0."""
        epoch, at = divmod(step, self.steps_per_epoch)
        shuffled = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.num_pictures)
        return shuffled[at * self.batch_size : (at + 1) * self.batch_size]

    def caption_draw(self, step: int) -> np.ndarray:
        """float64[batch_size] in [0, 1): which of its captions each picture has in this step."""
        return np.random.default_rng((self.seed, _CAPTION, step)).random(self.batch_size)

    def negative_draw(self, step: int) -> np.ndarray:
        """float64[2, batch_size] in [0, 1): ITM's negative picture and caption of each pair."""
        return np.random.default_rng((self.seed, _NEGATIVES, step)).random((2, self.batch_size))

    def split_draw(self, step: int) -> np.ndarray:
        """float64[batch_size] in [0, 1): where the caption of each picture is split in two."""
        return np.random.default_rng((self.seed, _SPLIT, step)).random(self.batch_size)


@dataclass(frozen=True)
class HeldOutBatch:
    """Pictures to measure on, with the draws that make the measure the same each time."""

    pictures: np.ndarray
    """int64[B]"""
    caption_draw: np.ndarray
    """float64[B] in [0, 1)"""
    negative_draw: np.ndarray
    """float64[2, B] in [0, 1)"""
    split_draw: np.ndarray
    """float64[B] in [0, 1)"""


def held_out_batches(num_pictures: int, at_most: int) -> Iterator[HeldOutBatch]:
    """All of `num_pictures` pictures once, in an order of chance, in even batches.

    Args:
        num_pictures: pictures there are.
        at_most: pictures in a batch.
    """
    draws = np.random.default_rng((num_pictures, at_most))
    splits = np.random.default_rng((num_pictures, at_most, _SPLIT))
    shuffled = draws.permutation(num_pictures)
    for pictures in np.array_split(shuffled, -(-num_pictures // at_most)):
        size = len(pictures)
        yield HeldOutBatch(
            pictures, draws.random(size), draws.random((2, size)), splits.random(size)
        )
