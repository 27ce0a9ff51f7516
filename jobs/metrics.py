"""What a training says of itself: means over some steps, metrics.jsonl, TensorBoard."""

import json
import logging
import time

import torch
import torch.distributed as dist
from torch import Tensor

from model import ranks
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


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
        line["pairs_per_s"] = round(self._steps * batch_size / passed, 2)
        line["data_wait_s"] = round(self._waited_s / self._steps, 5)
        self._clear()
        return line


class Metrics:
    """metrics.jsonl, a line of the log, and TensorBoard (local folders only)."""

    def __init__(self, folder: Folder, step: int) -> None:
        """Cut what is there back to the checkpoint's step."""
        self._folder = folder
        self._board = None
        text = folder.read(METRICS).decode() if folder.size(METRICS) is not None else ""
        lines = (line for line in text.splitlines() if line.endswith("}"))
        self._lines = [line for line in lines if json.loads(line)["step"] <= step]
        self.flush()
        if folder.is_local:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(f"{folder.path}/tensorboard", purge_step=step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        values = {name: float(f"{value:.8g}") for name, value in values.items()}
        self._lines.append(json.dumps({"step": step, "split": split} | values))
        if self._folder.is_local:
            with open(f"{self._folder.path}/{METRICS}", "a", encoding="utf-8") as file:
                file.write(self._lines[-1] + "\n")
        told = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        logger.info("%s step=%d %s", split, step, told)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Have all lines in the file; an object store gets it whole."""
        self._folder.publish(METRICS, "".join(f"{line}\n" for line in self._lines).encode())
        if self._board:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._board:
            self._board.close()
