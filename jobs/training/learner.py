"""What a stage brings to a training, within one rank."""

import logging
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from model import ranks
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.loader import Pairs

logger = logging.getLogger(__name__)


class Learner(Protocol):
    """What a stage trains.

    Micro-batches are numbered through the training: with `accumulate` A, step s has those from
    s * A to s * A + A - 1.
    """

    @property
    def module(self) -> nn.Module:
        """Its state dict is what a checkpoint holds; frozen parts are not in it."""

    @property
    def config(self) -> dict[str, Any]:
        """What is needed to make the module anew; stored in the checkpoint."""

    def batch(self, number: int) -> Any:
        """This rank's part of a micro-batch, with the methods `pin_memory()` and `to(device)`."""

    def losses(self, module: nn.Module, batch: Any, number: int) -> dict[str, Tensor]:
        """`loss`, which is minimised, and what else is to be logged.

        With `weight` among it, the loss of several micro-batches is their mean by these weights,
        alike on all ranks; without, all count alike.

        `module` is the learner's, perhaps wrapped for several ranks.
        """

    def updated(self) -> None:
        """Called after each update."""

    def named(self, number: int) -> list[dict[str, str]]:
        """uid and caption of the pairs of a micro-batch, on all ranks."""

    def validate(self) -> dict[str, float]:
        """Measures on held-out pairs; empty where there are none."""

    def merit(self, measured: dict[str, float]) -> float:
        """What the best checkpoint has most of, out of `validate`'s measures."""

    def written(self) -> list[dict[str, str]]:
        """uid, `caption` and what it writes of a few held-out pictures; a stage may write none."""


def mine(values: np.ndarray) -> np.ndarray:
    """This rank's part of what a micro-batch has."""
    size = len(values) // ranks.num_ranks()
    return values[ranks.rank() * size : (ranks.rank() + 1) * size]


def held_out(features: Dataset, captions: Dataset) -> Pairs | None:
    """The validation split, or None where it is empty."""
    try:
        return Pairs(features, captions, "validation")
    except ConfigError as error:
        if ranks.rank() == 0:
            logger.warning("trains without validation: %s", error)
        return None
