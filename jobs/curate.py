"""`viaduct curate`: unite equal pictures, judge captions, split, and even out the shards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from jobs.build import RunLog, build, running
from jobs.cluster import ClusterConfig, session
from jobs.shards import PoolConfig, Task
from pipeline.accounting import Account
from pipeline.curate import SplitConfig, gather
from pipeline.dataset import Dataset, Shard
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.extra import extra_of, united_type, widened
from pipeline.hashes import hash_shard
from pipeline.lineage import Lineage
from pipeline.plan import PlanConfig, left_out, make_plan, rows_of_shard
from pipeline.schemas import HASHES, PAIRS, PLAN, ROWS_PER_BATCH, with_extra
from pipeline.shard import ShardRecord, commit_table
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Curate:
    """Make `pairs` of one or several `raw`: equal pictures united, captions judged, split.

    Works in three phases, each committed: hashes of all pictures, one plan, the output shards.
    """

    raws: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RAW")]
    """Datasets of kind `raw`; where two disagree about a uid, the first one counts."""

    out: str
    """Folder or URI of the dataset `pairs` to make; a job that was stopped goes on there."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if not self.raws:
            raise ConfigError("raws: name at least one dataset of kind 'raw'")

    def run(self) -> Dataset:
        """Make the dataset, or go on with it."""
        inputs = Inputs([Dataset.open(location, "raw") for location in self.raws])
        folder = Folder.at(self.out)
        config = asdict(self.plan) | asdict(self.split)
        lineage = Lineage("curate", config, tuple(d.as_parent for d in inputs.datasets))
        draft = Draft.begin(folder, "pairs", with_extra(PAIRS, inputs.extra), lineage)
        if published := draft.whole():
            return published
        with running(self, draft) as log, session(self.cluster):
            hashes = self._hashes(inputs, folder / ".work", lineage, log)
            plan = self._plan(hashes, folder / ".work", lineage, log)
            return self._gather(inputs, hashes, plan, draft, log)

    def _hashes(self, inputs: "Inputs", work: Folder, lineage: Lineage, log: RunLog) -> Dataset:
        lineage = Lineage("hash", {}, lineage.parents)
        draft = Draft.begin(work / "hashes", "hashes", HASHES, lineage)
        make = partial(_hash_worker, inputs, draft.folder)
        return build(draft, inputs.tasks(), make, self.pool, log, phase="hash")

    def _plan(self, hashes: Dataset, work: Folder, lineage: Lineage, log: RunLog) -> Dataset:
        lineage = Lineage("plan", asdict(self.plan), (hashes.as_parent,))
        draft = Draft.begin(work / "plan", "plan", PLAN, lineage)
        make = partial(_plan_worker, hashes, draft.folder, self.plan)
        # Without its one shard there is no plan, so it is never published incomplete.
        pool = replace(self.pool, publish_incomplete=False)
        return build(draft, [Task(0, hashes.num_rows)], make, pool, log, phase="plan")

    def _gather(
        self, inputs: "Inputs", hashes: Dataset, plan: Dataset, draft: Draft, log: RunLog
    ) -> Dataset:
        table = plan.shard(0).table
        by_shard = table.filter(pc.is_valid(table.column("output_shard"))).group_by("output_shard")
        sums = by_shard.aggregate([("num_captions", "sum"), ("uid", "count")]).to_pylist()
        tasks = [Task(s["output_shard"], s["uid_count"], s["num_captions_sum"]) for s in sums]
        pictures, captions = left_out(table)
        lost = inputs.account_of(hashes.manifest.set_aside)
        return build(
            draft,
            tasks,
            partial(_gather_worker, inputs, plan, draft.folder, self.split),
            self.pool,
            log,
            phase="gather",
            pictures=[pictures, lost[0]],
            captions=[captions, lost[1]],
        )


@dataclass(frozen=True)
class Inputs:
    """The shards of several `raw`, numbered through."""

    datasets: Sequence[Dataset]

    @cached_property
    def shards(self) -> list[tuple[Dataset, int]]:
        return [(dataset, number) for dataset in self.datasets for number in dataset.records]

    @cached_property
    def extra(self) -> pa.StructType | None:
        """The type of `extra` that holds what any of them kept of its source."""
        return united_type((str(raw.folder), extra_of(raw)) for raw in self.datasets)

    def rows(self, number: int) -> pa.Table:
        """The rows of one input shard, with that `extra`."""
        return widened(self.open(number).table, self.extra)

    def tasks(self) -> list[Task]:
        return [Task(number, self.record(number).entry.rows) for number in range(len(self.shards))]

    def record(self, number: int) -> ShardRecord:
        dataset, shard = self.shards[number]
        return dataset.records[shard]

    def account_of(self, set_aside: Iterable[int]) -> tuple[Account, Account]:
        """Pictures and captions of input shards that were set aside: all dropped."""
        records = [self.record(number) for number in set_aside]
        captions = sum(record.captions.num_kept for record in records if record.captions)
        return Account.of_set_aside(sum(record.entry.rows for record in records), captions)

    def is_down(self, number: int, uid: bytes) -> bool:
        """Whether a uid was taken down from the dataset of an input shard."""
        return uid in self.shards[number][0].tombstones

    def open(self, number: int, *, verify: bool = False) -> Shard:
        """One input shard; raises DatasetError where it is damaged."""
        dataset, shard = self.shards[number]
        return dataset.shard(shard, verify=verify)


def _hash_worker(inputs: Inputs, out: Folder) -> Callable[[Task], ShardRecord]:
    def work(task: Task) -> ShardRecord:
        # Every byte is checked here, so that the phases after this one need not.
        hashes = hash_shard(inputs.open(task.number, verify=True))
        return _commit_all(out, task.number, "hashes", hashes)

    return work


def _plan_worker(hashes: Dataset, out: Folder, config: PlanConfig) -> Callable[[Task], ShardRecord]:
    def work(task: Task) -> ShardRecord:
        tables = [shard.table for shard in hashes.shards()]
        shards = np.repeat(list(hashes.records), [table.num_rows for table in tables])
        table = pa.concat_tables([HASHES.empty_table(), *tables])
        return _commit_all(out, task.number, "plan", make_plan(table, shards, config))

    return work


def _gather_worker(
    inputs: Inputs, plan: Dataset, out: Folder, split: SplitConfig
) -> Callable[[Task], ShardRecord]:
    table = plan.shard(0).table

    def work(task: Task) -> ShardRecord:
        rows = rows_of_shard(table, task.number)
        curated = gather(rows, inputs.rows, split, inputs.is_down, inputs.extra)
        return commit_table(
            out,
            task.number,
            curated.pairs,
            ROWS_PER_BATCH["pairs"],
            pictures=curated.pictures,
            captions=curated.captions,
        )

    return work


def _commit_all(out: Folder, number: int, kind: str, table: pa.Table) -> ShardRecord:
    everything = Account.all_kept(table.num_rows)
    return commit_table(out, number, table, ROWS_PER_BATCH[kind], pictures=everything)
