"""The order in which pictures are trained on: a function of seed, epoch and step, never stored."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.lanes import Lanes
from pipeline.shuffle import key_of, shuffled

_ORDER, _CAPTION, _NEGATIVES, _DROPOUT, _SPLIT, _WRITING = range(6)
"""What a generator is for; part of its seed, so that no two share their numbers."""


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one rank in one step: the same whatever happened before."""
    return int(np.random.default_rng((seed, _DROPOUT, step, rank)).integers(2**63))


def writing_seeds(seed: int, uids: Sequence[bytes]) -> list[int]:
    """Seeds of what is drawn as captions of pictures are written: in any batch and shard the same.

    Args:
        seed: of the job.
        uids: of the pictures, 16 bytes each.
    """
    halves = np.frombuffer(b"".join(uids), ">u8").reshape(-1, 2)
    seeds: list[int] = key_of(seed, _WRITING, halves[:, 0], halves[:, 1]).tolist()
    return seeds


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """In which order pictures are trained on."""

    shuffle: Literal["auto", "full", "lanes"] = "auto"
    """`full` shuffles each epoch whole, which reads from everywhere at once and so is for local
    features. `lanes` goes through shards in an order of chance, many at a time, and shuffles
    within windows: what comes shard by shard is read once an epoch. `auto` takes `full` where all
    features are local."""

    num_lanes: int = 64
    """Places of an epoch that are gone through at once; ranks own lanes. For `lanes`."""

    window: int = 2048
    """Pictures that are shuffled together in a lane: two shards or so. For `lanes`."""

    def __post_init__(self) -> None:
        for name in ("num_lanes", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")

    def resolved(self, remote: Sequence[str]) -> "OrderConfig":
        """The same without `auto`.

        Args:
            remote: the locations of features that are not local.

        Raises:
            ConfigError: a full shuffle of them is asked for.
        """
        if self.shuffle == "full" and remote:
            raise ConfigError(
                f"shuffle: full, but {remote[0]} is not local: each picture of a batch would lie "
                "in another shard, which is fetched whole; take lanes, or copy the features here"
            )
        if self.shuffle == "auto":
            return replace(self, shuffle="lanes" if remote else "full")
        return self

    @property
    def lasting(self) -> dict[str, Any]:
        """What of a resolved configuration the order depends on."""
        return asdict(self) if self.shuffle == "lanes" else {"shuffle": self.shuffle}


class Draws:
    """What else is drawn by chance for each picture of a global batch."""

    batch_size: int
    """Pictures in a global batch."""
    seed: int

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
class Order(Draws):
    """Global batches of a data set of `num_pictures`, the same on any number of ranks.

    Rank r of R takes the r-th of R equal slices. An epoch is a full shuffle, or goes by lanes,
    without what does not fill its last batch, so that no picture is twice in a batch.
    """

    num_pictures: int
    batch_size: int
    seed: int
    lanes: Lanes | None = None
    """How an epoch is gone through; None shuffles it whole."""

    def __post_init__(self) -> None:
        if self.num_pictures < self.batch_size:
            raise ConfigError(
                f"batch_size: {self.batch_size}, but there are {self.num_pictures} pictures to "
                "train on"
            )
        if self.lanes is not None:
            self.lanes.steps_per_epoch(self.batch_size)

    @staticmethod
    def of(shard_sizes: np.ndarray, config: OrderConfig, batch_size: int, seed: int) -> "Order":
        """The order of pictures that are numbered along shards of these sizes (int64[S]).

        Raises:
            ConfigError: they fill no batch.
        """
        by_lanes = config.shuffle == "lanes"
        lanes = Lanes(shard_sizes, config.num_lanes, config.window) if by_lanes else None
        return Order(int(shard_sizes.sum()), batch_size, seed, lanes)

    @property
    def steps_per_epoch(self) -> int:
        if self.lanes is not None:
            return self.lanes.steps_per_epoch(self.batch_size)
        return self.num_pictures // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """int64[batch_size]: the pictures of a step, counted from 0."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if self.lanes is not None:
            key = int(key_of(self.seed, _ORDER)[0])
            return self.lanes.batch(key, epoch, at, self.batch_size)
        places = np.arange(at * self.batch_size, (at + 1) * self.batch_size)
        return shuffled(places, self.num_pictures, key_of(self.seed, _ORDER, epoch))

    def epochs(self, step: int) -> np.ndarray:
        """int64[batch_size]: the epoch in which each picture of a step is seen."""
        return np.full(self.batch_size, step // self.steps_per_epoch)


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
