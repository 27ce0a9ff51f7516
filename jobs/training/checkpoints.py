"""Checkpoints: copied at once, saved in the background; the last ones and the best are kept."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from jobs.metric_lines import BEST
from jobs.training.training import Training
from model.checkpoint import (
    STEPS,
    Checkpoint,
    copied,
    kept_steps,
    save_tensors,
    step_folder,
    write_checkpoint,
)
from model.checkpoint_models import load_weights
from model.optimizer import optimizer_state, restore_optimizer

logger = logging.getLogger(__name__)


def best_of(steps: Sequence[int], merits: Mapping[int, float]) -> int | None:
    """The step of the highest merit, of equals the later; None where none has one."""
    measured = [step for step in steps if step in merits]
    return max(measured, key=lambda step: (merits[step], step), default=None)


class Checkpoints:
    """The checkpoints of a training; used as a context, it ends with what it saves.

    Args:
        training: see there.
        config: of the learner.
        tokenizer: of the training.
    """

    def __init__(self, training: Training, config: dict[str, Any], tokenizer: bytes) -> None:
        self._training, self._config, self._tokenizer = training, config, tokenizer
        self._kept: list[int] = []
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def restore(self, module: nn.Module, optimizer: torch.optim.AdamW) -> int:
        """Put the last checkpoint's weights and state back; the steps that are done by it."""
        found = kept_steps(self._training.folder)
        self._kept = [checkpoint.step for checkpoint in found]
        if not found:
            return 0
        load_weights(module, found[-1])
        restore_optimizer(optimizer, module, found[-1].tensors("optimizer"))
        return found[-1].step

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.AdamW,
        validations: Mapping[int, dict[str, float]],
        merit: Callable[[dict[str, float]], float],
    ) -> None:
        """Copy all that a checkpoint holds, and save it in the background; raises as `settle`.

        Waits for the one before it.

        Args:
            step: steps done.
            module, optimizer: what trains.
            validations: measures on held-out pairs, by step.
            merit: what the best checkpoint has most of.
        """
        self.settle()
        self._kept.append(step)
        merits = {at: merit(measured) for at, measured in validations.items()}
        best = best_of(self._kept, merits)
        told = None if best is None else {"step": best, "validation": validations[best]}
        weights = copied(module.state_dict())
        state = copied(optimizer_state(optimizer, module))
        self._saving = self._thread.submit(self._write, step, weights, state, told)

    def check(self) -> None:
        """Raise what saving the last one has raised, if it has ended so; without waiting."""
        if self._saving is not None and self._saving.done():
            self.settle()

    def settle(self) -> None:
        """Wait until the last one is saved; raises whatever saving it raised."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def _write(
        self,
        step: int,
        weights: dict[str, Tensor],
        state: dict[str, Tensor],
        best: dict[str, Any] | None,
    ) -> None:
        training = self._training
        folder = step_folder(training.folder, step)
        contents = {
            "weights": save_tensors(weights),
            "optimizer": save_tensors(state),
            "tokenizer": self._tokenizer,
        }
        config, lineage = self._config, training.lineage
        write_checkpoint(Checkpoint(folder, training.stage, step, config, lineage, {}), contents)
        training.check_claim()  # that took its time, and another job's checkpoints are not ours
        keep = set(self._kept[-training.loop.keep_checkpoints :])
        if best is not None:
            keep.add(best["step"])
            named = {"checkpoint": step_folder(training.folder, best["step"]).name}
            (training.folder / STEPS).publish_json(BEST, named | best)
        self._kept = sorted(keep)
        names = {step_folder(training.folder, kept).name for kept in keep}
        home = training.folder / STEPS
        for name in home.entries():  # also what a kill left half written, or half removed
            if name.startswith("step-") and name not in names:
                (home / name).remove()
