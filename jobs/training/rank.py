"""The life of one rank: updates, lines of metrics, validations and checkpoints in their order."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from jobs.malloc import keep_memory
from jobs.prometheus import TrainingMetrics
from jobs.training.boards import Board, TensorBoard, WeightsAndBiases
from jobs.training.checkpoints import Checkpoints
from jobs.training.guard import NOT_FINITE, Guard
from jobs.training.metrics import Metrics
from jobs.training.step_lines import StepLines
from jobs.training.training import TOKENIZER, Training
from jobs.training.updates import Updates
from jobs.training.window import Window
from model import ranks
from model.qformer import QFormer
from pipeline.claim import Lost
from pipeline.errors import ViaductError
from pipeline.loader import ahead

logger = logging.getLogger(__name__)


def live(config: dict[str, Any]) -> None:
    """The life of one rank, within Ray Train.

    Args:
        config: `training`, a Training, and `threads`, None on a GPU.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from ray.train.torch import get_device

    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
        keep_memory()
        # Without it the gradient of an index is summed in the order in which threads come.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        _Rank(config["training"], get_device()).run()
    except Lost as lost:
        logger.warning("rank=%d ends: %s", ranks.rank(), lost)  # its driver may be dead
        raise
    except ViaductError:
        raise  # one line, told where the command was called
    except Exception:
        logger.exception("rank=%d failed", ranks.rank())
        raise


class _Rank:
    def __init__(self, training: Training, device: torch.device) -> None:
        self._training, self._device = training, device
        tokenizer = training.folder.read(TOKENIZER)
        self._learner = training.make_learner(tokenizer.decode(), device)
        module = self._learner.module.to(device).train()
        if training.loop.compile:
            for part in module.modules():
                if isinstance(part, QFormer):
                    part.compile_layers()
        self._checkpoints = Checkpoints(training, self._learner.config, tokenizer)
        self._updates = Updates(self._learner, training.loop, training.optimizer, device)
        self._first = self._checkpoints.restore(module, self._updates.optimizer)
        self._window = Window(device)
        self._guard = Guard(self._first, self._name_pairs)
        self._waited_s = 0.0
        if ranks.rank() == 0:
            training.check_claim()
            logger.info("begins step=%d", self._first)
            self._not_finite = StepLines(training.folder, NOT_FINITE, self._first)
            self._metrics = Metrics(training.folder, self._first, self._boards())

    def _boards(self) -> list[Board]:
        training = self._training
        boards: list[Board] = [TrainingMetrics(training.folder.name)]
        if training.folder.is_local:
            boards.append(TensorBoard(training.folder, self._first))
        if training.loop.wandb is not None:
            lineage = training.lineage.to_json()
            boards.append(WeightsAndBiases(training.loop.wandb, training.folder, lineage))
        return boards

    def run(self) -> None:
        """Train to the last step."""
        loop = self._training.loop
        begun = time.monotonic()
        batches = self._batches()
        with self._checkpoints:
            for step in range(self._first, loop.steps):
                values, skipped = self._updates.make(step, batches)
                self._window.add(values, skipped, self._waited_s)
                self._waited_s = 0.0
                self._guard.heed(skipped)
                self._checkpoints.check()
                done = step + 1
                last = done == loop.steps
                if last or done % loop.validate_every == 0 or done % loop.checkpoint_every == 0:
                    self._guard.settle()
                if done % loop.log_every == 0 or last:
                    rate = (time.monotonic() - begun) / (done - self._first)
                    self._log(done, left_s=(loop.steps - done) * rate)
                if done % loop.validate_every == 0 or last:
                    self._validate(done)
                if done % loop.checkpoint_every == 0 or last:
                    self._save(done)
            self._checkpoints.settle()
        if ranks.rank() == 0:
            self._metrics.close()

    def _batches(self) -> Iterator[Any]:
        """This rank's part of all micro-batches to come; counts the time that it waits."""
        num = self._training.loop.accumulate
        made = ahead(self._batch, range(self._first * num, self._training.loop.steps * num))
        while True:
            asked = time.monotonic()
            batch = next(made, None)
            self._waited_s += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def _batch(self, number: int) -> Any:
        batch = self._learner.batch(number)
        return batch.pin_memory() if self._device.type == "cuda" else batch

    def _name_pairs(self, step: int) -> None:
        """Name the pairs of a step's batch in a file."""
        if ranks.rank() == 0:
            self._training.check_claim()
            num = self._training.loop.accumulate
            for number in range(step * num, (step + 1) * num):
                for pair in self._learner.named(number):
                    self._not_finite.add(step + 1, pair)
            self._not_finite.flush()

    def _log(self, done: int, left_s: float) -> None:
        """One line of metrics, averaged over the steps since the last one and over the ranks."""
        line = self._window.take(self._training.loop.batch_size)
        if ranks.rank() == 0:
            self._training.check_claim()
            rate = self._updates.rate(done - 1)
            line |= {"learning_rate": rate, "time_left_s": round(left_s, 1)}
            self._metrics.write(done, "train", line)

    def _validate(self, done: int) -> None:
        """On the first rank; the others wait."""
        if ranks.rank() == 0:
            self._learner.module.eval()
            with torch.no_grad(), ranks.alone():
                if measured := self._learner.validate():
                    self._training.check_claim()
                    self._metrics.write(done, "validation", measured)
                    self._metrics.write_captions(done, self._learner.written())
            self._learner.module.train()
        if ranks.num_ranks() > 1:
            dist.barrier()

    def _save(self, done: int) -> None:
        """A checkpoint, by the first rank, unless the folder is another job's by now."""
        if ranks.rank() == 0:
            self._training.check_claim()
            self._metrics.flush()
            validations, merit = self._metrics.validations(), self._learner.merit
            module, optimizer = self._learner.module, self._updates.optimizer
            self._checkpoints.save(done, module, optimizer, validations, merit)
