"""Means over the steps between two lines of metrics, kept on the device."""

import time

import torch
import torch.distributed as dist
from torch import Tensor

from model import ranks


class Window:
    """Sums of what is logged, kept on the device: no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._skipped = torch.zeros((), device=self._device)
        self._waited_s, self._begun, self._steps = 0.0, time.monotonic(), 0

    def add(self, values: dict[str, Tensor], skipped: Tensor, waited_s: float) -> None:
        """Take in a step.

        Args:
            values: scalars.
            skipped: whether its update was skipped; then its values count for nothing.
            waited_s: seconds for which it waited for its batch.
        """
        counted = (~skipped).float()
        for name, value in values.items():
            value = torch.where(skipped, 0.0, value.detach().float())
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + counted
        self._skipped += skipped
        self._waited_s += waited_s
        self._steps += 1

    def take(self, batch_size: int) -> dict[str, float]:
        """The means over steps and ranks; the window is empty afterwards.

        A name of which nothing was counted is left out.
        """
        sums, counts = (torch.stack(list(x.values())) for x in (self._sums, self._counts))
        means = sums / counts.clamp(min=1)
        if ranks.num_ranks() > 1:
            dist.all_reduce(means)
            means /= ranks.num_ranks()
        told = zip(self._sums, means.tolist(), counts.tolist(), strict=True)
        line = {name: mean for name, mean, count in told if count}
        if skipped := int(self._skipped.item()):
            line["skipped_updates"] = skipped
        passed = time.monotonic() - self._begun
        line["step_s"] = round(passed / self._steps, 4)
        line["pairs_per_s"] = round(self._steps * batch_size / passed, 2)
        line["data_wait_s"] = round(self._waited_s / self._steps, 5)
        self._clear()
        return line
