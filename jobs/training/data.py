"""What a training reads: one dataset or several, and in which order; a rank's part of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.training.config import LoopConfig
from jobs.training.learner import mine
from pipeline.captions import open_captions
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.lineage import Parent
from pipeline.loader import Batch, Pairs
from pipeline.mix import MixedOrder
from pipeline.order import Order, OrderConfig
from pipeline.shard_cache import CacheConfig
from pipeline.views import check_same_encoder, open_views

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The datasets of a training, opened: pickled to each rank."""

    views: tuple[tuple[Dataset, ...], ...]
    """Of each dataset its features, a view after the other."""
    captions: tuple[Dataset, ...]
    """What lies beside each."""
    mix: tuple[float, ...]
    """The weight of each; empty weighs them by their pairs."""
    order: OrderConfig
    """Resolved."""

    @staticmethod
    def open(
        features: Sequence[str],
        captions: Sequence[str],
        mix: Sequence[float],
        order: OrderConfig,
        cache: CacheConfig | None = None,
    ) -> "TrainingData":
        """Open the datasets.

        Args:
            features: the location of each one's features, of one view or several.
            captions: what lies beside each, of kind `pairs` or `captions`.
            mix: the weight of each, or none.
            order: as configured.
            cache: of features that are not local.

        Raises:
            ConfigError: they are not equally many, there is none, or they are of two encoders.
        """
        if not features:
            raise ConfigError("features: name at least one dataset")
        for name, given in (("captions", captions), ("mix", mix or features)):
            if len(given) != len(features):
                raise ConfigError(f"{name}: {len(given)} of them for {len(features)} features")
        views = tuple(tuple(open_views(location, cache)) for location in features)
        for others in views:
            check_same_encoder(views[0][0], others[0])
        remote = [str(its[0].folder) for its in views if not its[0].folder.is_local]
        beside = tuple(open_captions(location) for location in captions)
        return TrainingData(views, beside, tuple(mix), order.resolved(remote))

    @property
    def evaluation(self) -> tuple[Dataset, Dataset]:
        """Features and captions that are measured on: those of the dataset named first."""
        return self.views[0][0], self.captions[0]

    @property
    def encoder(self) -> dict[str, Any]:
        """What the lineage of the features says of their encoder."""
        return self.evaluation[0].manifest.lineage.frozen["encoder"]

    @property
    def parents(self) -> tuple[Parent, ...]:
        """Of each dataset its features and captions."""
        families = zip(self.views, self.captions, strict=True)
        return tuple(it.as_parent for views, captions in families for it in (*views, captions))

    @property
    def lasting(self) -> dict[str, Any]:
        """What of the configuration the order depends on."""
        mixed = {"mix": list(self.mix)} if len(self.views) > 1 else {}
        return self.order.lasting | mixed

    def pairs(self, seed: int, *, pin: bool = False) -> Pairs:
        """The pairs to train on; raises as `Pairs`."""
        families = list(zip(self.views, self.captions, strict=True))
        pairs = Pairs(*families[0], "train", seed=seed, pin=pin)
        for views, captions in families[1:]:
            pairs.add(views, captions)
        return pairs

    def order_of(self, pairs: Pairs, batch_size: int, seed: int) -> Order | MixedOrder:
        """The order of pairs that were opened here; raises ConfigError where they are too few."""
        sizes: list[np.ndarray] = [part.shard_sizes for part in pairs.parts]
        if len(sizes) == 1:
            return Order.of(sizes[0], self.order, batch_size, seed)
        weights = self.mix or [len(part) for part in pairs.parts]
        return MixedOrder.of(sizes, weights, self.order, batch_size, seed)


class MicroBatches:
    """The pairs of a training in its order, a micro-batch after the other.

    Args:
        data: what is read.
        loop: how many at a time, and the seed.
        pin: as of `Pairs`.

    Raises:
        ConfigError: there are too few.
    """

    def __init__(self, data: TrainingData, loop: LoopConfig, *, pin: bool = False) -> None:
        self.pairs = data.pairs(loop.seed, pin=pin)
        self.order = data.order_of(self.pairs, loop.micro_batch_size, loop.seed)

    def log(self) -> None:
        """Say how many pictures are trained on, and how many have no caption for it."""
        without = sum(part.num_without_caption for part in self.pairs.parts)
        logger.info("trains on pictures=%d without_caption=%d", len(self.pairs), without)

    def of_this_rank(self, number: int) -> Batch:
        """This rank's part of a micro-batch."""
        drawn = (self.order.batch, self.order.caption_draw, self.order.epochs)
        return self.pairs.batch(*(mine(draw(number)) for draw in drawn))

    def named(self, number: int) -> list[dict[str, str]]:
        """uid and caption of the pairs of a micro-batch, on all ranks."""
        return self.pairs.named(self.order.batch(number), self.order.caption_draw(number))
