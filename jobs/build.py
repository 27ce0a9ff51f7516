"""A dataset filled shard by shard: resume, set aside, publish, and the log of its runs."""

import contextlib
import datetime
import logging
import platform
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from jobs import settings
from jobs.progress import Progress
from jobs.prometheus import ShardMetrics
from jobs.shards import MakeWorker, Outcome, PoolConfig, Task, run_shards
from pipeline.accounting import Account
from pipeline.claim import Claim, claimed
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.errors import ViaductError
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


class Incomplete(ViaductError):
    """Shards were set aside; everything else is committed."""

    def __init__(self, folder: Folder, outcome: Outcome, num_committed: int) -> None:
        named = "; ".join(
            f"{number:05d} ({reason})" for number, reason in sorted(outcome.set_aside.items())
        )
        super().__init__(
            f"{folder}: {len(outcome.set_aside)} shards set aside, {num_committed} committed: "
            f"{named}. The same command tries them again; --publish-incomplete does without them"
        )
        self.damaged = outcome.damaged


class RunLog:
    """run.json: when, where, how long, how often tried. Never part of a digest.

    Args:
        claim: on the folder; nothing is written once it is lost.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._earlier = (claim.folder.read_json(RUN_FILE) or {"runs": []})["runs"]
        self._begun = time.monotonic()
        self._run: dict[str, Any] = {
            "command": sys.argv,
            "started": _now(),
            "ended": None,
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "phases": [],
        }
        self._write()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """Log one part of the run; the caller may add fields to what it gets."""
        phase: dict[str, Any] = {"phase": name}
        self._run["phases"].append(phase)
        begun = time.monotonic()
        try:
            yield phase
        finally:
            phase["seconds"] = round(time.monotonic() - begun, 3)
            self._write()

    def told(self, name: str) -> dict[str, Any]:
        """What was logged of a part of this run, its seconds too; empty where it had no such."""
        return next((its for its in self._run["phases"] if its["phase"] == name), {})

    def end(self) -> None:
        self._run["ended"] = _now()
        self._run["seconds"] = round(time.monotonic() - self._begun, 3)
        self._run["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._write()

    def _write(self) -> None:
        self.claim.check()
        self.claim.folder.publish_json(RUN_FILE, {"runs": [*self._earlier, self._run]})


_PACKAGES = ("viaduct", "ray", "pyarrow", "numpy", "pillow", "torch", "timm", "img2dataset")


@contextlib.contextmanager
def running(job: Any, draft: Draft) -> Iterator[RunLog]:
    """One run of a job on a draft: locked, its configuration and log kept in its folder.

    Raises:
        ConfigError: another job is writing there, or began something else before this one; or
            took over while this one was halted.
    """
    folder = draft.folder
    with claimed(folder, f"viaduct {draft.lineage.job}") as claim:
        Draft.begin(folder, draft.kind, draft.schema, draft.lineage)
        folder.sweep("ledger")  # drafts in .work sweep their own when they are published
        folder.publish(settings.FILE, settings.to_yaml(job))
        log = RunLog(claim)
        try:
            yield log
        finally:
            log.end()


def build(
    draft: Draft,
    tasks: Sequence[Task],
    make_worker: MakeWorker,
    pool: PoolConfig,
    log: RunLog,
    *,
    phase: str,
    pictures: Sequence[Account] = (),
    captions: Sequence[Account] = (),
    at_once: int = 1,
) -> Dataset:
    """Make the shards that are not committed yet, then publish the dataset.

    Args:
        draft: the dataset.
        tasks: all its shards.
        make_worker: see `jobs.shards`.
        pool: see there.
        log: of this run.
        phase: what this part of the job is called in log and progress.
        pictures, captions: accounts that belong to no shard.
        at_once: shards that a worker is called with at once (`jobs.shards`).

    Raises:
        Incomplete: shards were set aside, and the dataset is not to be published without them.
    """
    published = draft.published()
    given_up = published.manifest.set_aside if published else {}
    tasks = [task for task in tasks if task.number not in given_up]
    committed = draft.committed()
    todo = [task for task in tasks if task.number not in committed]
    if published and not todo:
        logger.info("already whole phase=%s dataset=%s", phase, draft.folder)
        return published
    with log.phase(phase) as entry:
        metrics = ShardMetrics(draft.folder.name, phase, len(todo))
        outcome = _make(todo, tasks, make_worker, pool, phase, at_once, metrics)
        entry |= {
            "shards_made": len(outcome.done),
            "shards_found": len(tasks) - len(todo),
            "pictures_in": sum(task.rows for task in todo if task.number in outcome.done),
            "failed_attempts": dict(outcome.attempts),
            "set_aside": outcome.set_aside,
            "worker_peak_rss_bytes": outcome.peak_rss_bytes,
        }
        if outcome.sums:
            entry["sums"] = {name: round(value, 3) for name, value in outcome.sums.items()}
    records = committed | outcome.done
    if outcome.set_aside and not pool.publish_incomplete:
        raise Incomplete(draft.folder, outcome, len(records))
    lost = [task for task in tasks if task.number in outcome.set_aside]
    log.claim.check()
    return draft.publish(
        [records[task.number] for task in tasks if task.number in records],
        set_aside=dict(given_up) | {task.number: task.rows for task in lost},
        captions_set_aside=sum(task.captions for task in lost),
        pictures=pictures,
        captions=captions,
    )


def _make(
    todo: Sequence[Task],
    tasks: Sequence[Task],
    make_worker: MakeWorker,
    pool: PoolConfig,
    phase: str,
    at_once: int,
    metrics: ShardMetrics,
) -> Outcome:
    if not todo:
        return Outcome()
    total, left = (sum(task.weight for task in some) for some in (tasks, todo))
    progress = Progress(phase, total, total - left, "pictures")
    try:
        return run_shards(
            make_worker,
            todo,
            pool,
            lambda task: progress.advance(task.weight),
            at_once=at_once,
            metrics=metrics,
        )
    finally:
        progress.close()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
