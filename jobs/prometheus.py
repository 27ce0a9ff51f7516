"""What Prometheus sees of running jobs, through the endpoint that Ray has on each node.

`docs/cluster.md` says how to scrape it, and `docs/grafana.json` is a dashboard of all that is here.
"""

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from pipeline.schemas import KEPT
from pipeline.shard import ShardRecord


class ShardMetrics:
    """Of a job that makes shards, by its driver; within a Ray session.

    Args:
        dataset: name of what is made.
        phase: what this part of the job is called in log and progress.
        num_shards: that are still to be made.
    """

    def __init__(self, dataset: str, phase: str, num_shards: int) -> None:
        self._tags = {"dataset": dataset, "phase": phase}
        which = tuple(self._tags)
        self._shards = Counter(
            "viaduct_shards",
            "Shards made or set aside, and attempts that failed",
            (*which, "outcome"),
        )
        self._left = Gauge("viaduct_shards_left", "Shards that are still to be made", which)
        self._pictures = Counter(
            "viaduct_pictures",
            "Pictures kept, and those that were not by reason",
            (*which, "outcome"),
        )
        self._bytes = Counter("viaduct_bytes", "Bytes of shards written", which)
        self._num_left = num_shards
        self._left.set(num_shards, self._tags)

    def made(self, record: object) -> None:
        """A shard was made; a record of what was written says what is in it."""
        self._over("made")
        if isinstance(record, ShardRecord):
            pictures = {KEPT: record.pictures.num_kept, **record.pictures.dropped}
            for outcome, count in pictures.items():
                self._count(self._pictures, count, outcome)
            self._bytes.inc(record.entry.bytes, self._tags)

    def attempt_failed(self) -> None:
        """An attempt at a shard failed."""
        self._count(self._shards, 1, "attempt_failed")

    def set_aside(self) -> None:
        """A shard was given up."""
        self._over("set_aside")

    def _over(self, outcome: str) -> None:
        self._count(self._shards, 1, outcome)
        self._num_left -= 1
        self._left.set(self._num_left, self._tags)

    def _count(self, counter: Counter, count: int, outcome: str) -> None:
        if count:  # Ray refuses to add nothing
            counter.inc(count, self._tags | {"outcome": outcome})


class TrainingMetrics:
    """A board (`jobs.training.boards`) of the last numbers of a training; within a Ray session.

    Args:
        run: name of the training's folder.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._step = Gauge("viaduct_training_step", "Step that was told of last", ("run", "split"))
        self._numbers = Gauge(
            "viaduct_training", "Last value of a metric of training", ("run", "split", "metric")
        )

    def numbers(self, step: int, split: str, values: Mapping[str, float]) -> None:
        tags = {"run": self._run, "split": split}
        self._step.set(step, tags)
        for name, value in values.items():
            self._numbers.set(value, tags | {"metric": name})

    def texts(self, step: int, lines: Sequence[Mapping[str, str]]) -> None:
        """Prometheus holds numbers alone."""

    def flush(self) -> None:
        """Ray sends them on by itself."""

    def close(self) -> None:
        """They stay as they are until the process ends."""
