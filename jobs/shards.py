"""The runner of every shard-to-shard job: a pool of Ray actors with `ray.wait`.

A worker holds one shard at a time. A worker that dies, hangs past its deadline or raises costs the
shard an attempt; after the last one the shard is set aside with the reason, and the others go on.
Ray Data was the other candidate; docs/architecture.md says why it was not taken.
"""

import contextlib
import heapq
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.errors import ConfigError, DatasetError, ViaductError
from pipeline.shard import ShardRecord

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_BACKOFF_S = 1.0


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The workers and their patience."""

    workers: int | None = None
    """Workers at once; by default as many as the cluster's CPUs (or GPUs) hold."""

    cpus_per_worker: float = 1.0
    """Cores each worker reserves."""

    gpus_per_worker: float = 0.0
    """GPUs each worker reserves; a share where it is below 1."""

    deadline_s: float = 3600.0
    """Longest time for one attempt at a shard, in seconds; then its worker is killed."""

    attempts: int = 3
    """Attempts at a shard before it is set aside."""

    publish_incomplete: bool = False
    """Publish the dataset even if shards were set aside; it then lacks them for good."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts: {self.attempts} is not positive")
        if self.deadline_s <= 0:
            raise ConfigError(f"deadline_s: {self.deadline_s} is not positive")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: {self.workers} is not positive")
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise ConfigError("cpus_per_worker, gpus_per_worker: must not be negative")


@dataclass(frozen=True)
class Task:
    """One shard to make."""

    number: int
    """Of the shard, in the dataset that is made."""
    rows: int
    """Rows that come in: the weight in progress and accounts."""


@dataclass
class Outcome:
    """How a run ended."""

    done: dict[int, ShardRecord] = field(default_factory=dict)
    set_aside: dict[int, str] = field(default_factory=dict)
    """Shard to the reason of its last attempt."""
    damaged: bool = False
    """Whether a shard was set aside for damaged input: then no further attempt can help."""
    attempts: Counter[int] = field(default_factory=Counter)
    """Failed attempts by shard."""
    peak_rss_bytes: int = 0
    """Largest resident memory of a worker."""


MakeWorker = Callable[[], Callable[[Task], ShardRecord]]
"""Runs once in each worker process; what it returns makes one shard after another."""


class Worker:
    """The process around a worker: one of Ray's actors."""

    def start(self, make_worker: MakeWorker) -> None:
        self._work = make_worker()

    def run(self, task: Task) -> tuple[ShardRecord, int]:
        record = self._work(task)
        return record, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class _Slot:
    """An actor with what it is doing now."""

    actor: Any
    ref: Any
    task: Task | None
    """None while it starts, which waits for the cluster and so has no deadline."""
    deadline: float = float("inf")


def run_shards(
    make_worker: MakeWorker,
    tasks: Iterable[Task],
    config: PoolConfig,
    on_done: Callable[[Task], None] = lambda task: None,
) -> Outcome:
    """Make shards in parallel until each is made or set aside.

    Args:
        make_worker: pickled to each worker process, once.
        tasks: the shards.
        config: see there.
        on_done: called with each task that is made.

    Raises:
        ConfigError: a worker raised it: the user must act, and no other attempt would help.
        ViaductError: workers do not even start.
    """
    return _Pool(make_worker, list(tasks), config, on_done).run()


class _Pool:
    def __init__(
        self,
        make_worker: MakeWorker,
        tasks: list[Task],
        config: PoolConfig,
        on_done: Callable[[Task], None],
    ) -> None:
        self._config = config
        self._on_done = on_done
        self._make_worker = ray.put(make_worker)
        self._actor_class = ray.remote(Worker).options(
            num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker, max_restarts=0
        )
        # (not before, order, task): a failed shard waits a little and goes behind the others.
        self._queue = [(0.0, number, task) for number, task in enumerate(tasks)]
        self._order = len(tasks)
        self._slots: list[_Slot] = []
        self._failed_starts = 0
        self._outcome = Outcome()

    def run(self) -> Outcome:
        with self._cleared_away():
            for _ in range(min(len(self._queue), num_workers(self._config))):
                self._add_worker()
            while self._queue or any(slot.task for slot in self._slots):
                self._step()
        return self._outcome

    def _step(self) -> None:
        """Wait for one event: a result, a death, or a deadline."""
        by_ref = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        now = time.monotonic()
        deadline = min((slot.deadline for slot in self._slots), default=float("inf"))
        wait_s = min(_POLL_S, max(0.0, deadline - now))
        if by_ref:
            ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=wait_s)
        else:
            ready = []
            time.sleep(min(wait_s, max(0.0, self._queue[0][0] - now)))
        for ref in ready:
            self._settle(by_ref[ref])
        for slot in [s for s in self._slots if s.deadline < time.monotonic()]:
            self._replace(slot, f"took longer than {self._config.deadline_s:g} s")
        for slot in [s for s in self._slots if s.ref is None]:
            self._give(slot)

    def _add_worker(self) -> None:
        actor = self._actor_class.remote()
        self._slots.append(_Slot(actor, actor.start.remote(self._make_worker), None))

    def _give(self, slot: _Slot) -> None:
        """Hand the next shard that is due to an idle worker."""
        if self._queue and self._queue[0][0] <= time.monotonic():
            _, _, slot.task = heapq.heappop(self._queue)
            slot.deadline = time.monotonic() + self._config.deadline_s
            slot.ref = slot.actor.run.remote(slot.task)

    def _settle(self, slot: _Slot) -> None:
        """Take what a worker returned or died of."""
        try:
            result = ray.get(slot.ref)
        except RayTaskError as error:
            self._raised(slot, error.cause)
            return
        except RayActorError as error:
            self._replace(slot, f"its worker died ({_reason(error)})")
            return
        except RayError as error:
            self._replace(slot, f"{type(error).__name__}: {_reason(error)}")
            return
        self._failed_starts = 0
        if slot.task is not None:
            record, peak = result
            self._outcome.done[slot.task.number] = record
            self._outcome.peak_rss_bytes = max(self._outcome.peak_rss_bytes, peak)
            self._on_done(slot.task)
        self._idle(slot)

    def _raised(self, slot: _Slot, cause: BaseException) -> None:
        """A worker raised; its process is sound."""
        if isinstance(cause, ConfigError):
            raise cause
        if slot.task is None:
            self._replace(slot, f"{type(cause).__name__}: {_first_line(cause)}")
        elif isinstance(cause, DatasetError):
            self._outcome.damaged = True
            self._set_aside(slot.task, str(cause))
            self._idle(slot)
        else:
            self._failed(slot.task, f"{type(cause).__name__}: {_first_line(cause)}")
            self._idle(slot)

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Give up a worker, count its shard's attempt, and start another in its place."""
        ray.kill(slot.actor)
        self._slots.remove(slot)
        if slot.task is not None:
            self._failed(slot.task, reason)
        else:
            self._failed_starts += 1
            if self._failed_starts >= self._config.attempts:
                raise ViaductError(f"workers do not start: {reason}")
        if self._queue:
            self._add_worker()

    def _failed(self, task: Task, reason: str) -> None:
        self._outcome.attempts[task.number] += 1
        attempt = self._outcome.attempts[task.number]
        logger.warning("attempt failed shard=%05d attempt=%d: %s", task.number, attempt, reason)
        if attempt >= self._config.attempts:
            self._set_aside(task, f"{reason}, {attempt} attempts")
            return
        due = time.monotonic() + _BACKOFF_S * 2 ** (attempt - 1)
        self._order += 1
        heapq.heappush(self._queue, (due, self._order, task))

    def _set_aside(self, task: Task, reason: str) -> None:
        logger.error("set aside shard=%05d: %s", task.number, reason)
        self._outcome.set_aside[task.number] = reason

    @staticmethod
    def _idle(slot: _Slot) -> None:
        slot.task, slot.ref, slot.deadline = None, None, float("inf")

    @contextlib.contextmanager
    def _cleared_away(self) -> Iterator[None]:
        try:
            yield
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)


def num_workers(config: PoolConfig) -> int:
    """How many workers the cluster holds, or as many as asked for.

    Raises:
        ConfigError: it cannot hold even one.
    """
    have = ray.cluster_resources()
    limits = [config.workers] if config.workers else []
    for kind, each in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker)):
        if not each:
            continue
        if have.get(kind, 0) < each:
            raise ConfigError(
                f"{kind.lower()}s_per_worker: {each:g}, but Ray has {have.get(kind, 0):g}"
            )
        limits.append(int(have[kind] / each))
    return min(limits, default=1)


def _reason(error: BaseException) -> str:
    """The line of Ray's long texts that says why."""
    text = str(error)
    if "memory" in text.lower() and "oom" in text.lower():
        return "out of memory"
    for line in text.splitlines():
        if "exit detail" in line.lower() or "exit type" in line.lower():
            return line.strip()
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
