"""The order of several datasets in one training: of each global batch, each has its share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError
from pipeline.order import Draws, Order, OrderConfig
from pipeline.shuffle import key_of


def shares(weights: Sequence[float], batch_size: int) -> list[int]:
    """How many pictures of each batch are of each dataset: by weight, the largest rests rounded up.

    Raises:
        ConfigError: a weight is not positive, or too small for a picture.
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"mix: {' '.join(map(str, weights))}: a weight is not positive")
    exact = np.array(weights) / sum(weights) * batch_size
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: batch_size - counts.sum()]] += 1
    for weight, count in zip(weights, counts.tolist(), strict=True):
        if count == 0:
            raise ConfigError(f"mix: {weight} is less than a picture of a batch of {batch_size}")
    return counts.tolist()


@dataclass(frozen=True)
class MixedOrder(Draws):
    """Global batches of several datasets, whose pictures are numbered one after the other.

    Each dataset has an order and epochs of its own. In a batch their pictures are spread evenly, so
    that each of R ranks has its share of each, and of those of lanes nearly its own lanes.
    """

    orders: tuple[Order, ...]
    batch_size: int
    seed: int

    @staticmethod
    def of(
        shard_sizes: Sequence[np.ndarray],
        weights: Sequence[float],
        config: OrderConfig,
        batch_size: int,
        seed: int,
    ) -> "MixedOrder":
        """The order of datasets with shards of these sizes.

        Args:
            shard_sizes: of each dataset int64[S], the pictures in each of its shards.
            weights: of each dataset, by which a batch is shared out.
            config, batch_size, seed: of the whole.

        Raises:
            ConfigError: a weight is wrong, or a dataset fills no batch's share.
        """
        counts = shares(weights, batch_size)
        orders = (
            Order.of(sizes, config, count, int(key_of(seed, number)[0]))
            for number, (sizes, count) in enumerate(zip(shard_sizes, counts, strict=True))
        )
        return MixedOrder(tuple(orders), batch_size, seed)

    def batch(self, step: int) -> np.ndarray:
        """int64[batch_size]: the pictures of a step, counted from 0."""
        sizes = [order.num_pictures for order in self.orders]
        firsts = iter(np.cumsum([0, *sizes]))
        return self._spread(lambda order: next(firsts) + order.batch(step))

    def epochs(self, step: int) -> np.ndarray:
        """int64[batch_size]: the epoch of its dataset in which each picture of a step is seen."""
        return self._spread(lambda order: order.epochs(step))

    def _spread(self, values: Callable[[Order], np.ndarray]) -> np.ndarray:
        """What each dataset has of a batch, in its order, spread evenly among the others'."""
        places = [(np.arange(o.batch_size) + 0.5) / o.batch_size for o in self.orders]
        together = np.concatenate([values(order) for order in self.orders])
        return together[np.argsort(np.concatenate(places), kind="stable")]
