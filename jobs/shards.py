"""The runner of every shard-to-shard job: a pool of Ray actors with `ray.wait`.

A worker holds one shard at a time, or two, if one's beginning is to overlap the other's end. A
worker that dies, hangs past its deadline or raises costs the shard an attempt; after the last one
it is set aside with the reason, and the others go on.
Ray Data was the other candidate; docs/architecture.md says why it was not taken.
"""

import contextlib
import heapq
import logging
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from jobs.capacity import Bundle, Size, Wait, actor_options, bundle
from jobs.prometheus import ShardMetrics
from pipeline.errors import ConfigError, DatasetError, ViaductError, first_line

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 8.0
_IDLE_S = 0.5
"""A worker idle for longer is asked whether it lives before it is trusted with a shard."""
_DEATHS_AT_START = 20
"""Workers in a row that may die while they start, out of memory or with their node."""
_MEMORY_KILL_COST = 0.5
"""Part of an attempt: Ray's memory monitor kills innocent workers beside the culprit."""


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The workers and their patience."""

    workers: int | None = None
    """Most workers at once; by default as many as the cluster's CPUs (or GPUs) hold, or come to
    hold. A cluster that grows is asked for this number at once, without it for ever more while
    there is work; either way work begins with the first that is up."""

    min_workers: int = 1
    """Fewest workers that the cluster must have room for: one that grows is asked for them at once,
    without `workers` too; one that cannot hold them is an error."""

    cpus_per_worker: float | None = None
    """Cores each worker reserves; by default one, or one for each of its threads. Beside a GPU
    none, so that nodes with GPUs need not declare cores, for which work on CPUs would take them."""

    gpus_per_worker: float = 0.0
    """GPUs each worker reserves; a share where it is below 1."""

    memory_gb_per_worker: float = 0.0
    """Memory each worker reserves, in 10^9 bytes, so that a node is given no more workers than its
    memory holds; nothing by default. `worker_peak_rss_bytes` in run.json is what one took."""

    deadline_s: float = 3600.0
    """Longest time for one attempt at a shard, in seconds; then its worker is killed."""

    attempts: int = 3
    """Attempts at a shard before it is set aside."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts: {self.attempts} is not positive")
        if self.deadline_s <= 0:
            raise ConfigError(f"deadline_s: {self.deadline_s} is not positive")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: {self.workers} is not positive")
        if self.min_workers < 1:
            raise ConfigError(f"min_workers: {self.min_workers} is not positive")
        if self.workers is not None and self.min_workers > self.workers:
            raise ConfigError(f"min_workers: {self.min_workers} is above workers={self.workers}")
        for name in ("cpus_per_worker", "gpus_per_worker", "memory_gb_per_worker"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")

    def on(self, device: str, threads: int) -> Self:
        """For workers that compute on a device.

        Unless told otherwise each has a whole GPU, or a core for each thread.
        """
        if device == "cpu":
            cpus = float(threads) if self.cpus_per_worker is None else self.cpus_per_worker
            return replace(self, cpus_per_worker=cpus)
        return replace(self, gpus_per_worker=self.gpus_per_worker or 1.0)

    @property
    def bundle(self) -> Bundle:
        """What each worker reserves."""
        cpus = self.cpus_per_worker
        if cpus is None:
            cpus = 0.0 if self.gpus_per_worker else 1.0
        return bundle(cpus, self.gpus_per_worker, self.memory_gb_per_worker)


@dataclass(frozen=True, kw_only=True)
class PoolConfig(WorkersConfig):
    """The workers and their patience."""

    publish_incomplete: bool = False
    """Publish the dataset even if shards were set aside; it then lacks them for good."""


@dataclass(frozen=True)
class Task:
    """One shard to make."""

    number: int
    """Of the shard, in the dataset that is made."""
    rows: int
    """Rows that come in, for the account if the shard is set aside."""
    captions: int = 0
    """Captions that come in, likewise."""
    pictures: int | None = None
    """Those that there is work on, which is what progress is of; by default all rows."""

    @property
    def weight(self) -> int:
        """Its part in the progress of all."""
        return self.rows if self.pictures is None else self.pictures


Record = TypeVar("Record")
"""What a worker returns of a shard: its record where it writes one, or a small result."""


@dataclass(frozen=True)
class Made(Generic[Record]):
    """A shard with what its making took, where a worker tells it."""

    record: Record
    sums: Mapping[str, float] = field(default_factory=dict)
    """What adds up over shards, such as seconds; for run.json, no part of a digest."""


@dataclass
class Outcome(Generic[Record]):
    """How a run ended."""

    done: dict[int, Record] = field(default_factory=dict)
    set_aside: dict[int, str] = field(default_factory=dict)
    """Shard to the reason of its last attempt."""
    damaged: bool = False
    """Whether a shard was set aside for damaged input: then no further attempt can help."""
    attempts: Counter[int] = field(default_factory=Counter)
    """Failed attempts by shard."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of what workers told of the shards they made."""
    peak_rss_bytes: int = 0
    """Largest resident memory of a worker."""


MakeWorker = Callable[[], Callable[[Any], Record | Made[Record]]]
"""Runs once in each worker process; what it returns makes one shard after another."""


class Worker:
    """The process around a worker: one of Ray's actors."""

    def start(self, make_worker: MakeWorker) -> None:
        self._work = make_worker()

    def ping(self) -> None:
        """Answers if the process is up, and lives."""

    def run(self, task: Task) -> tuple[Made, int]:
        made = self._work(task)
        made = made if isinstance(made, Made) else Made(made)
        return made, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class _Call:
    """What is awaited of an actor."""

    task: Task | None = None
    """The shard it makes; None while it starts, which waits for the cluster without deadline."""
    deadline: float = float("inf")
    """None yet for a shard that waits for the one before it."""


@dataclass
class _Slot:
    """An actor with what it is doing now."""

    actor: Any
    calls: dict[Any, _Call]
    """By Ray's reference, in the order in which they were made."""
    is_up: bool = False
    """Whether a node has it; if not, it waits for one."""
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def tasks(self) -> list[Task]:
        return [call.task for call in self.calls.values() if call.task is not None]

    def allow(self, seconds: float) -> None:
        """The first of its shards has so long from now, unless its time runs already."""
        call = next(iter(self.calls.values()), None)
        if call is not None and call.task is not None and call.deadline == float("inf"):
            call.deadline = time.monotonic() + seconds


def run_shards(
    make_worker: MakeWorker[Record],
    tasks: Iterable[Task],
    config: WorkersConfig,
    on_done: Callable[[Task], None] = lambda task: None,
    on_set_aside: Callable[[Task, str], None] = lambda task, reason: None,
    *,
    at_once: int = 1,
    metrics: ShardMetrics | None = None,
) -> Outcome[Record]:
    """Make shards in parallel until each is made or set aside.

    Args:
        make_worker: pickled to each worker process, once.
        tasks: the shards; what a subclass of Task carries along reaches the worker.
        config: see there.
        on_done: called with each task that is made.
        on_set_aside: called with each that is set aside, and the reason.
        at_once: shards that a worker is called with at once, each in a thread of its own; the
            worker sees to it that the later one only takes over where the first one ends.
        metrics: told of each shard that is made, set aside or failed an attempt.

    Raises:
        ConfigError: a worker raised it: the user must act, and no other attempt would help.
        ViaductError: workers do not even start.
    """
    pool = _Pool(make_worker, list(tasks), config, on_done, on_set_aside, at_once, metrics)
    return pool.run()


class _Pool:
    def __init__(
        self,
        make_worker: MakeWorker,
        tasks: list[Task],
        config: WorkersConfig,
        on_done: Callable[[Task], None],
        on_set_aside: Callable[[Task, str], None],
        at_once: int,
        metrics: ShardMetrics | None,
    ) -> None:
        self._config = config
        self._on_done = on_done
        self._on_set_aside = on_set_aside
        self._metrics = metrics
        self._at_once = at_once
        self._make_worker = ray.put(make_worker)
        self._each = config.bundle
        self._wait = Wait(self._each)
        self._actor_class = ray.remote(Worker).options(
            **actor_options(self._each),
            max_restarts=0,
            max_concurrency=at_once,
        )
        # (not before, order, task): a failed shard waits a little and goes behind the others.
        self._queue = [(0.0, number, task) for number, task in enumerate(tasks)]
        self._order = len(tasks)
        self._cost: defaultdict[int, float] = defaultdict(float)
        self._slots: list[_Slot] = []
        self._has_started = False
        self._failed_starts = 0
        self._start_not_before = 0.0
        self._outcome: Outcome[Any] = Outcome()

    def run(self) -> Outcome:
        if not self._queue:
            return self._outcome
        size = Size(self._each, self._config.workers, self._config.min_workers)
        with self._cleared_away():
            while self._queue or any(slot.tasks for slot in self._slots):
                self._step(size)
        return self._outcome

    def _step(self, size: Size) -> None:
        """Hand out work, then wait for one event: a result, a death, a deadline, a shard due."""
        now = time.monotonic()
        size.look()
        while now >= self._start_not_before and len(self._slots) < min(size.wanted, self._wanted()):
            actor = self._actor_class.remote()
            calls = (actor.ping.remote(), actor.start.remote(self._make_worker))
            self._slots.append(_Slot(actor, {call: _Call() for call in calls}))
        for slot in sorted(self._slots, key=lambda slot: len(slot.calls)):
            if self._queue and self._queue[0][0] <= now and self._has_room(slot, size):
                self._give(slot, now)
        self._give_back(size)
        by_ref = {ref: slot for slot in self._slots for ref in slot.calls}
        for ref in _ready(list(by_ref), self._wait_s(now, size)):
            self._settle(by_ref[ref], ref)
        for slot in list(self._slots):
            self._check_deadlines(slot)
        if any(slot.is_up for slot in self._slots):
            self._wait.over()
        elif self._slots:
            self._wait.look()

    def _give_back(self, size: Size) -> None:
        """End workers that there is no work or node for, so that none need come, and others can go.

        First those that wait for a node, then those that start, then idle ones.
        """
        spare = [slot for slot in self._slots if not slot.tasks]
        for slot in sorted(spare, key=lambda slot: (slot.is_up, not slot.calls)):
            most = self._wanted() if slot.is_up else min(size.wanted, self._wanted())
            if len(self._slots) > most:
                self._give_up(slot)

    def _wanted(self) -> int:
        """Workers there is work for."""
        return len(self._queue) + sum(bool(slot.tasks) for slot in self._slots)

    def _has_room(self, slot: _Slot, size: Size) -> bool:
        """Whether a worker may take a shard; the last ones wait for whoever has none."""
        if len(slot.tasks) < len(slot.calls):  # it starts, or is asked whether it lives
            return False
        return not slot.calls or (len(slot.calls) < self._at_once and len(self._queue) > size.held)

    def _wait_s(self, now: float, size: Size) -> float:
        """Seconds until something is to be done even if nothing is reported."""
        deadlines = (call.deadline for slot in self._slots for call in slot.calls.values())
        moments = [now + _POLL_S, *deadlines]
        if self._queue and any(self._has_room(slot, size) for slot in self._slots):
            moments.append(self._queue[0][0])
        return max(0.0, min(moments) - now)

    def _give(self, slot: _Slot, now: float) -> None:
        """Hand a worker the next shard; one that was idle for long is asked first."""
        if not slot.calls and now - slot.idle_since > _IDLE_S:
            slot.calls[slot.actor.ping.remote()] = _Call()
            return
        _, _, task = heapq.heappop(self._queue)
        slot.calls[slot.actor.run.remote(task)] = _Call(task)
        slot.allow(self._config.deadline_s)

    def _settle(self, slot: _Slot, ref: Any) -> None:
        """Take what a worker returned or died of."""
        if ref not in slot.calls:  # of a worker that was just given up
            return
        task = slot.calls[ref].task
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            self._raised(slot, ref, error.cause)
            return
        except OutOfMemoryError:
            self._died(slot, "out of memory", cost=_MEMORY_KILL_COST)
            return
        except RayError as error:
            self._died(slot, f"its worker died ({_exit_detail(error)})")
            return
        self._over(slot, ref)
        slot.is_up = True
        if task is None:
            if not slot.calls:  # it has started, or lives
                self._has_started, self._failed_starts = True, 0
        else:
            made, peak = result
            self._outcome.done[task.number] = made.record
            for name, value in made.sums.items():
                self._outcome.sums[name] = self._outcome.sums.get(name, 0) + value
            self._outcome.peak_rss_bytes = max(self._outcome.peak_rss_bytes, peak)
            if self._metrics is not None:
                self._metrics.made(made.record)
            self._on_done(task)

    def _raised(self, slot: _Slot, ref: Any, cause: BaseException) -> None:
        """A worker raised; its process is sound."""
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        if isinstance(cause, ConfigError):
            raise cause
        task = slot.calls[ref].task
        if task is None:
            self._died(slot, reason)
            if not self._has_started and self._failed_starts >= self._config.attempts:
                raise ViaductError(f"workers do not start: {reason}")
            return
        if isinstance(cause, DatasetError):
            self._outcome.damaged = True
            self._set_aside(task, str(cause))
        else:
            self._failed(task, reason)
        self._over(slot, ref)

    def _over(self, slot: _Slot, ref: Any) -> None:
        """A call has ended; the time of the next one begins."""
        del slot.calls[ref]
        slot.idle_since = time.monotonic()
        slot.allow(self._config.deadline_s)

    def _check_deadlines(self, slot: _Slot) -> None:
        ref, call = next(iter(slot.calls.items()), (None, _Call()))
        if call.deadline >= time.monotonic():
            return
        if _ready([ref], 0):  # its result came while another was being settled
            self._settle(slot, ref)
            return
        for task in self._give_up(slot):
            if task is call.task:
                self._failed(task, f"took longer than {self._config.deadline_s:g} s")
            else:  # it waited for the other, and is not to blame
                self._again(task, delay_s=0)

    def _died(self, slot: _Slot, reason: str, cost: float = 1.0) -> None:
        """A worker is gone; its shards share the attempt: whose fault it is nobody knows."""
        tasks = self._give_up(slot)
        for task in tasks:
            self._failed(task, reason, cost / len(tasks))
        if tasks:
            return
        self._failed_starts += 1
        logger.warning("worker did not start: %s", reason)
        if self._failed_starts >= _DEATHS_AT_START:
            raise ViaductError(f"workers do not start: {reason}")
        self._start_not_before = time.monotonic() + _backoff_s(self._failed_starts)

    def _give_up(self, slot: _Slot) -> list[Task]:
        """Kill a worker; returns the shards that it had."""
        ray.kill(slot.actor)
        self._slots.remove(slot)
        tasks = slot.tasks
        slot.calls.clear()
        return tasks

    def _failed(self, task: Task, reason: str, cost: float = 1.0) -> None:
        self._outcome.attempts[task.number] += 1
        failures = self._outcome.attempts[task.number]
        self._cost[task.number] += cost
        if self._metrics is not None:
            self._metrics.attempt_failed()
        logger.warning("attempt failed shard=%05d attempt=%d: %s", task.number, failures, reason)
        if self._cost[task.number] >= self._config.attempts:
            self._set_aside(task, f"{reason}, {failures} attempts")
        else:
            self._again(task, _backoff_s(failures))

    def _again(self, task: Task, delay_s: float) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time.monotonic() + delay_s, self._order, task))

    def _set_aside(self, task: Task, reason: str) -> None:
        logger.error("set aside shard=%05d: %s", task.number, reason)
        self._outcome.set_aside[task.number] = reason
        if self._metrics is not None:
            self._metrics.set_aside()
        self._on_set_aside(task, reason)

    @contextlib.contextmanager
    def _cleared_away(self) -> Iterator[None]:
        try:
            yield
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)


def _ready(refs: list[Any], timeout_s: float) -> list[Any]:
    """All that is ready, after waiting for the first."""
    if not refs:
        time.sleep(timeout_s)
        return []
    ready, others = ray.wait(refs, num_returns=1, timeout=timeout_s)
    if ready and others:
        ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return ready


def _backoff_s(failures: int) -> float:
    """Doubles with each failure; spread, so that shards killed together do not meet again."""
    longest = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** (failures - 1))
    return longest * random.uniform(0.5, 1.5)


def _exit_detail(error: BaseException) -> str:
    """The line of Ray's long text that says how a process ended."""
    for line in str(error).splitlines():
        if "exit detail" in line.lower():
            return line.strip()
    return first_line(error)
