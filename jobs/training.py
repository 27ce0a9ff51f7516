"""The training loop of both stages, on Ray Train: ranks, checkpoints, metrics, exact resume.

A stage says what a batch is and what its losses are (`Learner`); everything else is here. All
randomness is a function of seed and step, so a run that goes on from a checkpoint gives the losses
of one that was never stopped.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.build import running
from jobs.malloc import keep_memory
from jobs.metrics import Metrics, Window
from model import ranks
from model.checkpoint import (
    FILE,
    Checkpoint,
    kept_steps,
    publish_last,
    save_tensors,
    step_folder,
    write_checkpoint,
)
from model.checkpoint_models import load_weights
from model.device_flags import later
from model.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
    set_learning_rate,
    update,
)
from model.qformer import QFormer
from pipeline.dataset import DRAFT, Dataset
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError, ViaductError, first_line
from pipeline.lineage import Lineage
from pipeline.loader import Pairs, ahead
from pipeline.order import dropout_seed
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

TOKENIZER = ".tokenizer.json"
"""Of the Q-Former; made once, before the first step, and part of each checkpoint."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and what to keep of it."""

    steps: int = 250_000
    """Updates."""

    batch_size: int = 1680
    """Pictures an update, over all ranks."""

    seed: int = 0
    """Of new weights, the order of pictures, captions drawn, negatives and dropout."""

    log_every: int = 50
    """Steps over which a line of metrics is averaged."""

    validate_every: int = 2000
    """Steps between two validations; the last step has one too."""

    validation_pictures: int = 512
    """Pictures of the validation split that are looked at, at most."""

    checkpoint_every: int = 2000
    """Steps between two checkpoints; the last step has one too."""

    keep_checkpoints: int = 2
    """Checkpoints kept, the last ones."""

    compile: bool = False
    """Compile the Q-Former's layers with torch.compile: the first steps take minutes, and the last
    bits of losses are others. Needs a C++ compiler."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if name in ("seed", "compile") else 1):
                raise ConfigError(f"{name}: {value} is too small")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} is no multiple of log_every={self.log_every}"
                )


@dataclass(frozen=True, kw_only=True)
class RanksConfig:
    """The processes that train together."""

    ranks: int | None = None
    """Processes; by default one for each GPU of the cluster, or one on CPUs."""

    threads: int | None = None
    """Cores of each rank on CPUs; by default all there are, shared evenly. Another number may
    change the last bits."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to train; `auto` takes GPUs where Ray has any."""

    restarts: int = 3
    """How often the ranks are started again after one of them died."""

    def __post_init__(self) -> None:
        for name in ("ranks", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is not positive")
        if self.restarts < 0:
            raise ConfigError(f"restarts: {self.restarts} is negative")


class Learner(Protocol):
    """What a stage trains, within one rank."""

    @property
    def module(self) -> nn.Module:
        """Its state dict is what a checkpoint holds; frozen parts are not in it."""

    @property
    def config(self) -> dict[str, Any]:
        """What is needed to make the module anew; stored in the checkpoint."""

    def batch(self, step: int) -> Any:
        """This rank's part of the global batch of a step, with the methods `pin_memory()` and
        `to(device)`."""

    def losses(self, module: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """`loss`, which is minimised, and what else is to be logged.

        `module` is the learner's, perhaps wrapped for several ranks.
        """

    def updated(self) -> None:
        """Called after each update."""

    def validate(self) -> dict[str, float]:
        """Measures on held-out pairs; empty where there are none."""


@dataclass(frozen=True)
class Training:
    """A training to run: pickled to each rank."""

    folder: Folder
    stage: int
    lineage: Lineage
    loop: LoopConfig
    optimizer: OptimizerConfig
    make_learner: Callable[[str, torch.device], Learner]
    """From the tokenizer and the device, in each rank."""
    tokenizer: Callable[[], str]
    """The tokenizer as JSON; asked for once, in the driver."""


@dataclass(frozen=True)
class Place:
    """Where a training runs."""

    num_ranks: int
    cuda: bool
    threads: int | None
    """Threads of a rank on a CPU; None on a GPU."""

    def lasting(self, loop: LoopConfig) -> dict[str, Any]:
        """What of loop and place changes the weights, if only in their last bits."""
        seldom = ("keep_checkpoints", "checkpoint_every", "log_every", "validate_every")
        kept = {name: value for name, value in asdict(loop).items() if name not in seldom}
        del kept["validation_pictures"]
        return kept | {"ranks": self.num_ranks, "threads": self.threads}


def prepare(config: RanksConfig, loop: LoopConfig) -> Place:
    """How many ranks, and where; within a Ray session.

    Raises:
        ConfigError: the cluster has not so many GPUs or cores, or they cannot share the batch.
    """
    have = ray.cluster_resources()
    gpus, cpus = (int(have.get(kind, 0)) for kind in ("GPU", "CPU"))
    cuda = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    num_ranks = config.ranks or (max(1, gpus) if cuda else 1)
    limit = gpus if cuda else cpus // (config.threads or 1)
    if num_ranks > limit:
        kind = "GPUs" if cuda else f"times {config.threads or 1} CPUs"
        raise ConfigError(f"ranks: {num_ranks}, but Ray has {limit} {kind}")
    if loop.batch_size % num_ranks:
        raise ConfigError(f"batch_size: {loop.batch_size} is no multiple of ranks={num_ranks}")
    return Place(num_ranks, cuda, None if cuda else config.threads or max(1, cpus // num_ranks))


def mine(values: np.ndarray) -> np.ndarray:
    """This rank's part of what a global batch has."""
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


def _begin(training: Training) -> Draft | None:
    """Begin a training folder or go on with it; None where nothing is left to do.

    Raises:
        ConfigError: the folder holds something else, or what another configuration began.
    """
    folder, lineage = training.folder, training.lineage
    if folder.size(FILE) is None:
        return Draft.begin(folder, f"stage{training.stage}", pa.schema([]), lineage)
    if difference := Checkpoint.open(folder).lineage.difference(lineage):
        raise ConfigError(f"{folder}: was trained otherwise ({difference}); choose another")
    folder.remove_file(DRAFT)
    return None


def train(training: Training, job: Any, config: RanksConfig, place: Place) -> Checkpoint:
    """Train to the last step, from the last checkpoint if there is one.

    Args:
        training: see there.
        job: the configuration to write beside the output.
        config, place: see there.

    Raises:
        ConfigError: the folder holds something else, or a rank raised it.
        ViaductError: the ranks kept failing.
    """
    folder = training.folder
    draft = _begin(training)
    if draft is None:
        return Checkpoint.open(folder)
    with running(job, draft) as log, log.phase("train") as entry:
        if folder.size(TOKENIZER) is None:
            folder.publish(TOKENIZER, training.tokenizer().encode())
        entry["failures"] = _fit(training, config, place)
        whole = publish_last(folder, kept_steps(folder)[-1])
        folder.remove_file(DRAFT)
        return whole


def _fit(training: Training, config: RanksConfig, place: Place) -> int:
    """Run the ranks until they are done; how often they failed.

    Ray Train would try again whatever the fault; a fault of the user's or of a file is told at
    once.
    """
    failures = 0
    while True:
        try:
            _fit_once(training, place)
            return failures
        except (ConfigError, DatasetError):
            raise
        except ViaductError as error:
            failures += 1
            if failures > config.restarts:
                raise
            logger.warning("ranks start again: %s", error)


def _fit_once(training: Training, place: Place) -> None:
    """One run of Ray Train; raises ViaductError, or what a rank raised of it."""
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    # What made the tokenizer holds all captions; ranks read it from the folder.
    shipped = {"training": replace(training, tokenizer=str), "threads": place.threads}
    # Checkpoints are ours, so nothing of Ray Train's own files outlives the run.
    with tempfile.TemporaryDirectory(prefix="viaduct-") as scratch:
        trainer = TorchTrainer(
            _run_rank,
            train_loop_config=shipped,
            torch_config=TorchConfig(backend="nccl" if place.cuda else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=place.num_ranks,
                use_gpu=place.cuda,
                resources_per_worker={"GPU": 1} if place.cuda else {"CPU": place.threads},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=scratch,
                # It would print the traceback of every fault, of those too that are one line.
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from None


def _cause(error: Exception) -> ViaductError:
    """What a rank raised, if the user can act on it."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for link in _chain(failure):
            if isinstance(link, ViaductError):
                return link
    first = next(iter(failures.values()), error)
    return ViaductError(f"training failed: {first_line(first)}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _run_rank(config: dict[str, Any]) -> None:
    """The life of one rank."""
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
    except ViaductError:
        raise  # one line, told where the command was called
    except Exception:
        logger.exception("rank=%d failed", ranks.rank())
        raise


class _Guard:
    """Hears of skipped updates a step late, so that no step waits, and stops what will not mend."""

    def __init__(self, done: int) -> None:
        self._heard = done
        self._told: Callable[[], bool] | None = None
        self._in_a_row = 0

    def heed(self, skipped: Tensor) -> None:
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
        if self._in_a_row == _SKIPS:
            raise ConfigError(
                f"step {self._heard}: loss or gradient is not finite, the third time in a row; go "
                "on from the last checkpoint with a lower learning_rate or a longer warm-up"
            )


_SKIPS = 3
"""Skipped updates in a row that end a training."""


class _Rank:
    def __init__(self, training: Training, device: torch.device) -> None:
        self._training, self._device = training, device
        self._tokenizer = training.folder.read(TOKENIZER)
        self._learner = training.make_learner(self._tokenizer.decode(), device)
        module = self._learner.module.to(device).train()
        if training.loop.compile:
            for part in module.modules():
                if isinstance(part, QFormer):
                    part.compile_layers()
        self._optimizer = make_optimizer(training.optimizer, module)
        self._first = self._restore()
        self._wrapped = DistributedDataParallel(module) if ranks.num_ranks() > 1 else module
        self._metrics = Metrics(training.folder, self._first) if ranks.rank() == 0 else None
        self._window = Window(device)
        self._guard = _Guard(self._first)

    def run(self) -> None:
        loop = self._training.loop
        begun = time.monotonic()
        batches = ahead(self._batch, range(self._first, loop.steps))
        for step in range(self._first, loop.steps):
            asked = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - asked
            losses, skipped = self._update(batch.to(self._device), step)
            self._window.add(losses, skipped, waited)
            self._guard.heed(skipped)
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
        if self._metrics:
            self._metrics.close()

    def _batch(self, step: int) -> Any:
        batch = self._learner.batch(step)
        return batch.pin_memory() if self._device.type == "cuda" else batch

    def _update(self, batch: Any, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One update; what is to be logged, and whether it was skipped."""
        training = self._training
        rate = learning_rate(training.optimizer, step, training.loop.steps)
        set_learning_rate(self._optimizer, rate)
        torch.manual_seed(dropout_seed(training.loop.seed, step, ranks.rank()))
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            losses = self._learner.losses(self._wrapped, batch, step)
        self._optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self._wrapped.parameters(), training.optimizer.clip_norm)
        finite = torch.isfinite(losses["loss"].detach()) & torch.isfinite(norm)
        skipped = ranks.anywhere(~finite)
        update(self._optimizer, skip=skipped)
        self._learner.updated()
        return losses | {"gradient_norm": norm}, skipped

    def _log(self, done: int, left_s: float) -> None:
        """One line of metrics, averaged over the steps since the last one and over the ranks."""
        line = self._window.take(self._training.loop.batch_size)
        if self._metrics:
            rate = learning_rate(self._training.optimizer, done - 1, self._training.loop.steps)
            line |= {"learning_rate": rate, "time_left_s": round(left_s, 1)}
            self._metrics.write(done, "train", line)

    def _validate(self, done: int) -> None:
        """On the first rank; the others wait."""
        if self._metrics:
            self._learner.module.eval()
            with torch.no_grad(), ranks.alone():
                measured = self._learner.validate()
            self._learner.module.train()
            if measured:
                self._metrics.write(done, "validation", measured)
        _wait_for_all()

    def _save(self, done: int) -> None:
        """A checkpoint, by the first rank; older ones go."""
        if self._metrics:
            training, module = self._training, self._learner.module
            self._metrics.flush()
            folder = step_folder(training.folder, done)
            checkpoint = Checkpoint(
                folder, training.stage, done, self._learner.config, training.lineage, {}
            )
            contents = {
                "weights": save_tensors(module.state_dict()),
                "optimizer": save_tensors(optimizer_state(self._optimizer, module)),
                "tokenizer": self._tokenizer,
            }
            write_checkpoint(checkpoint, contents)
            for old in kept_steps(training.folder)[: -training.loop.keep_checkpoints]:
                old.folder.remove()
        _wait_for_all()

    def _restore(self) -> int:
        """Steps that are done, according to the last checkpoint."""
        kept = kept_steps(self._training.folder)
        if not kept:
            return 0
        module = self._learner.module
        load_weights(module, kept[-1])
        restore_optimizer(self._optimizer, module, kept[-1].tensors("optimizer"))
        if ranks.rank() == 0:
            logger.info("goes on step=%d", kept[-1].step)
        return kept[-1].step


def _wait_for_all() -> None:
    if ranks.num_ranks() > 1:
        dist.barrier()
