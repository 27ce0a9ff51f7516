"""One update of the weights, from the gradients of one micro-batch or of several."""

import contextlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.training.config import LoopConfig
from jobs.training.learner import Learner
from model import ranks
from model.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    update,
)
from pipeline.order import dropout_seed


class Updates:
    """The updates of a learner's weights.

    Args:
        learner: its module on its device, in training mode.
        loop, config: see there.
        device: of the module.
    """

    def __init__(
        self, learner: Learner, loop: LoopConfig, config: OptimizerConfig, device: torch.device
    ) -> None:
        self._learner, self._loop, self._config, self._device = learner, loop, config, device
        self.optimizer = make_optimizer(config, learner.module)
        module = learner.module
        self._wrapped = DistributedDataParallel(module) if ranks.num_ranks() > 1 else module
        self._bf16 = in_bf16(loop.precision, device)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self._config, step, self._loop.steps)

    def make(self, step: int, batches: Iterator[Any]) -> tuple[dict[str, Tensor], Bool[Tensor, ""]]:
        """One update, unless the loss or its gradient is not finite on some rank.

        Args:
            step: counted from 0.
            batches: the micro-batches to come, of which it takes its own.

        Returns:
            What is to be logged, and whether it was skipped; no host waited for either.
        """
        set_learning_rate(self.optimizer, self.rate(step))
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._accumulate(step, batches)
        norm = nn.utils.clip_grad_norm_(self._wrapped.parameters(), self._config.clip_norm)
        finite = torch.isfinite(losses["loss"]) & torch.isfinite(norm)
        skipped = ranks.anywhere(~finite)
        update(self.optimizer, skip=skipped)
        self._learner.updated()
        return losses | {"gradient_norm": norm}, skipped

    def _accumulate(self, step: int, batches: Iterator[Any]) -> dict[str, Tensor]:
        """Have the gradient of the mean loss in the weights; what is to be logged."""
        num = self._loop.accumulate
        if num == 1:
            losses, _ = self._gradient(next(batches), step)
            return losses
        parts, weights = [], []
        for at, batch in enumerate(islice(batches, num)):
            # Ranks exchange their gradients with the last one.
            with contextlib.nullcontext() if at == num - 1 else self._apart():
                losses, weight = self._gradient(batch, step * num + at)
            parts.append(losses)
            weights.append(weight)
        total = torch.stack(weights).sum()
        gradients = [p.grad for p in self._learner.module.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, total)
        return {
            name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) / total
            for name in parts[0]
        }

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return contextlib.nullcontext()

    def _gradient(self, batch: Any, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradient of a micro-batch, times its weight; its losses and its weight."""
        torch.manual_seed(dropout_seed(self._loop.seed, number, ranks.rank()))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            losses = self._learner.losses(self._wrapped, batch.to(self._device), number)
        weight = losses.pop("weight", torch.ones((), device=self._device))
        loss = losses["loss"]
        (loss if self._loop.accumulate == 1 else loss * weight).backward()
        return {name: value.detach() for name, value in losses.items()}, weight


def in_bf16(precision: str, device: torch.device) -> bool:
    """Whether layers compute in bf16 (`LoopConfig.precision`); `auto` asks the device."""
    if precision == "auto":
        cuda = device.type == "cuda"
        return cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
