"""Who does the parts of an evaluation: Ray's workers, or this process where they are few."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from jobs.progress import Progress
from jobs.shards import MakeWorker, Task, WorkersConfig, run_shards
from pipeline.errors import DatasetError, ViaductError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Workers:
    """How parts are done; each returns a small result, which is kept."""

    pool: WorkersConfig | None
    """Of Ray's workers; None does everything here, one part after the other, without the seconds
    that workers take to start."""
    threads: int = 1
    """Of PyTorch in each worker, on a CPU."""

    def all(
        self, make_worker: MakeWorker[Found], tasks: Sequence[Task], phase: str, unit: str
    ) -> list[Found]:
        """What comes of all tasks, in their order, with progress.

        Args:
            make_worker: see `jobs.shards`; a worker returns what is wanted of a task.
            tasks: numbered from 0 or by shard, none twice.
            phase: what this is called in the progress, and where it fails.
            unit: of the tasks' `rows`.

        Raises:
            ConfigError: the user must act.
            DatasetError: a shard is missing or damaged.
            ViaductError: some part could not be done.
        """
        progress = Progress(phase, sum(task.rows for task in tasks), 0, unit)
        try:
            if self.pool is None:
                return _here(make_worker, tasks, progress)
            outcome = run_shards(
                partial(_with_threads, make_worker, self.threads),
                tasks,
                self.pool,
                lambda task: progress.advance(task.rows),
            )
        finally:
            progress.close()
        if outcome.set_aside:
            reasons = "; ".join(sorted(set(outcome.set_aside.values())))
            kind = DatasetError if outcome.damaged else ViaductError
            raise kind(f"{phase}: {len(outcome.set_aside)} of {len(tasks)} parts failed: {reasons}")
        return [outcome.done[task.number] for task in tasks]


def _here(make_worker: MakeWorker[Any], tasks: Sequence[Task], progress: Progress) -> list[Any]:
    found = []
    work = make_worker()
    for task in tasks:
        found.append(work(task))
        progress.advance(task.rows)
    return found


def _with_threads(make_worker: MakeWorker[Any], threads: int) -> Callable[[Any], Any]:
    torch.set_num_threads(threads)
    return make_worker()
