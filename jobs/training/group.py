"""The processes that train together, on Ray Train, and how they start again when one dies."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray

from jobs.capacity import Bundle, await_room, bundle, can_grow, num_held
from jobs.cluster import cluster_device
from jobs.training.config import LoopConfig
from pipeline.errors import ConfigError, DatasetError, ViaductError, first_line

logger = logging.getLogger(__name__)

Life = Callable[[dict[str, Any]], None]
"""What each rank does, with what is shipped to it."""


@dataclass(frozen=True, kw_only=True)
class RanksConfig:
    """The processes that train together."""

    ranks: int | None = None
    """Processes; by default one for each GPU that the cluster has now, or one on CPUs; a cluster
    that grows is asked for those that it lacks. A training may go on with another number: it sees
    the same pictures in the same order, but draws other dropout."""

    threads: int | None = None
    """Cores of each rank on CPUs; by default all there are, shared evenly, as far as the nodes hold
    ranks of that size. Another number may change the last bits, also of a training that goes on
    with it."""

    memory_gb_per_worker: float = 0.0
    """Memory each rank reserves, in 10^9 bytes; nothing by default."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to train; `auto` takes GPUs where Ray has any."""

    restarts: int = 3
    """How often the ranks are started again after one of them died."""

    def __post_init__(self) -> None:
        for name in ("ranks", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is not positive")
        for name in ("memory_gb_per_worker", "restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")


@dataclass(frozen=True)
class Place:
    """Where a training runs."""

    num_ranks: int
    cuda: bool
    threads: int | None
    """Threads of a rank on a CPU; None on a GPU."""
    memory_gb: float = 0.0
    """Memory that each reserves."""

    @property
    def bundle(self) -> Bundle:
        """What a rank reserves."""
        return bundle(self.threads or 0, float(self.cuda), self.memory_gb)


def prepare(config: RanksConfig, loop: LoopConfig) -> Place:
    """How many ranks, and where; within a Ray session.

    Raises:
        ConfigError: the cluster has not so many GPUs or cores, not on nodes that hold a whole rank,
            or they cannot share a micro-batch.
    """
    have = ray.cluster_resources()
    gpus, cpus = (int(have.get(kind, 0)) for kind in ("GPU", "CPU"))
    cuda = cluster_device(config.device) == "cuda"
    num_ranks = config.ranks or (max(1, gpus) if cuda else 1)
    limit = gpus if cuda else cpus // (config.threads or 1)
    if num_ranks > limit:
        _check_growth(num_ranks, limit, config, cuda)
    if loop.micro_batch_size % num_ranks:
        times = f" times accumulate={loop.accumulate}" if loop.accumulate > 1 else ""
        raise ConfigError(
            f"batch_size: {loop.batch_size} is no multiple of ranks={num_ranks}{times}"
        )
    place = Place(num_ranks, cuda, None, config.memory_gb_per_worker)
    if not cuda:
        place = replace(place, threads=config.threads or _most_threads(place, cpus // num_ranks))
    await_room(place.bundle, num_ranks)
    return place


def _most_threads(place: Place, most: int) -> int:
    """Cores of a rank so that the nodes hold all ranks, no more than given, and one at least."""
    sizes = (replace(place, threads=threads) for threads in range(most, 1, -1))
    fitting = (its.threads for its in sizes if num_held(its.bundle) >= place.num_ranks)
    return next(fitting, None) or 1


def _check_growth(num_ranks: int, limit: int, config: RanksConfig, cuda: bool) -> None:
    """Raise ConfigError unless the ranks that the cluster lacks may come."""
    if not can_grow():
        kind = "GPUs" if cuda else f"times {config.threads or 1} CPUs"
        raise ConfigError(f"ranks: {num_ranks}, but Ray has {limit} {kind}")
    if not cuda and config.threads is None:
        raise ConfigError("threads: say how many cores a rank has, for they are still to come")


def run_ranks(
    live: Life,
    shipped: dict[str, Any],
    config: RanksConfig,
    place: Place,
) -> int:
    """Run the ranks until they are done; how often they failed.

    Ray Train would try again whatever the fault; a fault of the user's or of a file is told at
    once.

    Args:
        live: what each rank does.
        shipped: what it gets.
        config, place: see there.

    Raises:
        ConfigError, DatasetError: a rank raised it.
        ViaductError: the ranks kept failing.
    """
    failures = 0
    while True:
        try:
            _run_once(live, shipped, place)
            return failures
        except (ConfigError, DatasetError):
            raise
        except ViaductError as error:
            failures += 1
            if failures > config.restarts:
                raise
            logger.warning("ranks start again: %s", error)
        await_room(place.bundle, place.num_ranks, again=True)


def _run_once(live: Life, shipped: dict[str, Any], place: Place) -> None:
    """One run of Ray Train; raises ViaductError, or what a rank raised of it."""
    from ray.exceptions import RayActorError
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    # Checkpoints are ours, so nothing of Ray Train's own files outlives the run.
    with tempfile.TemporaryDirectory(prefix="viaduct-") as scratch:
        trainer = TorchTrainer(
            live,
            train_loop_config=shipped,
            torch_config=TorchConfig(backend="nccl" if place.cuda else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=place.num_ranks,
                use_gpu=place.cuda,
                resources_per_worker=dict(place.bundle),
            ),
            run_config=RunConfig(
                name="train",
                storage_path=scratch,
                # It would print the traceback of every fault, of those too that are one line.
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        try:
            with _told_their_cluster():
                trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from None
        except RayActorError as error:  # what watches over the ranks is an actor itself
            raise ViaductError(f"training failed: its controller: {first_line(error)}") from None


@contextlib.contextmanager
def _told_their_cluster() -> Iterator[None]:
    """Have Ray Train's own actors ask this cluster after each other, and no other one.

    What frees the room of a controller that died looks for a cluster on its machine, and where it
    finds another one, which knows of no such controller, it takes the ranks' room at once.
    """
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    name, before = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS")
    ENV_VARS_TO_PROPAGATE.add(name)
    os.environ[name] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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
