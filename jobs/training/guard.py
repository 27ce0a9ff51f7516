"""Updates that were skipped because a loss or a gradient was not finite."""

import logging
from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from model.device_flags import later
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

IN_A_ROW = 3
"""Skipped updates in a row that end a training."""


class Guard:
    """Hears of skipped updates a step late, so that no step waits, and stops what will not mend.

    Args:
        done: steps that are done.
        name: called with the number of each step, counted from 0, whose update was skipped.
    """

    def __init__(self, done: int, name: Callable[[int], None]) -> None:
        self._heard = done
        self._name = name
        self._told: Callable[[], bool] | None = None
        self._in_a_row = 0

    def heed(self, skipped: Bool[Tensor, ""]) -> None:
        """Take in a step, and hear of the one before; raises as `settle`."""
        self.settle()
        self._told = later(skipped)

    def settle(self) -> None:
        """Hear of the last step that was taken in.

        Raises:
            ConfigError: it and the two before it were skipped.
        """
        if self._told is None:
            return
        skipped, self._told = self._told(), None
        self._heard += 1
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if skipped:
            logger.warning("step=%d skipped: its loss or gradient is not finite", self._heard)
            self._name(self._heard - 1)
        if self._in_a_row == IN_A_ROW:
            raise ConfigError(
                f"step {self._heard}: loss or gradient is not finite, the third time in a row "
                f"({NOT_FINITE} names the pairs); go on from the last checkpoint with a lower "
                "learning_rate or a longer warm-up"
            )


NOT_FINITE = "not_finite.jsonl"
"""Names the pairs of skipped updates, in the training's folder."""
