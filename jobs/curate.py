"""`viaduct curate`: unite pictures that are alike, judge captions, split, even out the shards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from jobs.build import build, running
from jobs.cluster import ClusterConfig, session
from jobs.run_log import RunLog
from jobs.shards import PoolConfig, Task
from pipeline.accounting import Account
from pipeline.caption_filters import CAPTION_FILTERS, filter_captions, max_pictures
from pipeline.curate import SplitConfig, gather
from pipeline.dataset import Dataset, Shard
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.extra import extra_of, united_type, widened
from pipeline.filters import Filter, described
from pipeline.hashes import hash_shard
from pipeline.languages import LanguageFilter
from pipeline.lineage import Lineage
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.plan import PlanConfig, left_out, make_plan, rows_of_shard
from pipeline.recurring import CAPTION_DIGESTS, RECURRING, caption_digests, count_recurring
from pipeline.schemas import HASHES, PAIRS, PLAN, ROWS_PER_BATCH, with_extra
from pipeline.shard import ShardRecord, commit_table, new_shard
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Curate:
    """Make `pairs` of one or several `raw`: what is alike united, captions judged, split.

    Works in phases, each committed: hashes of all pictures and captions, one plan, the captions
    that recur on many pictures, the output shards.
    """

    raws: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RAW")]
    """Datasets of kind `raw`; where two disagree about a uid, the first one counts."""

    out: str
    """Folder or URI of the dataset `pairs` to make; a job that was stopped goes on there."""

    evaluation: tuple[str, ...] = ()
    """Datasets with pictures (`raw` or `pairs`) that something will be evaluated on: what equals
    one of them or is alike is left out."""

    filters: Literal["none", "default", "strict"] = "default"
    """Which captions are rejected; their pictures stay: none but empty and endless ones, those that
    say nothing of the picture, or also what published recipes reject; docs/filters.md has the
    numbers."""

    languages: tuple[str, ...] = ()
    """Languages of the captions to keep, by their codes in ISO 639-1, such as `en de`; none named
    keeps all. Needs `pip install 'viaduct[language]'`."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    near: NearDuplicateConfig = field(default_factory=NearDuplicateConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if not self.raws:
            raise ConfigError("raws: name at least one dataset of kind 'raw'")
        _ = self._filters  # a language that nobody knows is told before any work

    @property
    def _filters(self) -> tuple[Filter, ...]:
        chosen = CAPTION_FILTERS[self.filters]
        return (*chosen, LanguageFilter(languages=self.languages)) if self.languages else chosen

    def run(self) -> Dataset:
        """Make the dataset, or go on with it."""
        inputs = Inputs([Dataset.open(location, "raw") for location in self.raws])
        folder = Folder.at(self.out)
        held_out = Inputs([_with_pictures(location) for location in self.evaluation])
        config = asdict(self.plan) | asdict(self.near) | asdict(self.split)
        config["filters"] = described(self._filters)
        config["evaluation"] = [dataset.digest for dataset in held_out.datasets]
        lineage = Lineage("curate", config, tuple(d.as_parent for d in inputs.datasets))
        draft = Draft.begin(folder, "pairs", with_extra(PAIRS, inputs.extra), lineage)
        if published := draft.whole():
            return published
        with running(self, draft) as log, session(self.cluster):
            work = folder / ".work"
            judged = max_pictures(self._filters) is not None
            hashes = self._hashes(inputs, work / "hashes", self.pool, log, captions=judged)
            evaluation = None
            if self.evaluation:  # all of it: what is missing there would not be missed
                pool = replace(self.pool, publish_incomplete=False)
                evaluation = self._hashes(held_out, work / "evaluation", pool, log, captions=False)
            plan = self._plan(hashes, evaluation, work / "plan", log)
            recurring = self._recurring(hashes, plan, work / "recurring", log)
            return self._gather(inputs, hashes, plan, recurring, draft, log)

    def _hashes(
        self, inputs: "Inputs", out: Folder, pool: PoolConfig, log: RunLog, *, captions: bool
    ) -> Dataset:
        """Hashes of pictures and, to count how often each recurs, of captions."""
        lineage = Lineage("hash", {}, tuple(d.as_parent for d in inputs.datasets))
        draft = Draft.begin(out, "hashes", HASHES, lineage)
        make = partial(_hash_worker, inputs, draft.folder, captions)
        return build(draft, inputs.tasks(), make, pool, log, phase="hash")

    def _plan(
        self, hashes: Dataset, evaluation: Dataset | None, out: Folder, log: RunLog
    ) -> Dataset:
        parents = (hashes,) if evaluation is None else (hashes, evaluation)
        config = asdict(self.plan) | asdict(self.near)
        lineage = Lineage("plan", config, tuple(d.as_parent for d in parents))
        draft = Draft.begin(out, "plan", PLAN, lineage)
        make = partial(_plan_worker, hashes, evaluation, draft.folder, self.plan, self.near)
        # Without its one shard there is no plan, so it is never published incomplete.
        pool = replace(self.pool, publish_incomplete=False)
        return build(draft, [Task(0, hashes.num_rows)], make, pool, log, phase="plan")

    def _recurring(
        self, hashes: Dataset, plan: Dataset, out: Folder, log: RunLog
    ) -> Dataset | None:
        """The captions of so many pictures that a filter rejects them; None without the filter."""
        bound = max_pictures(self._filters)
        if bound is None:
            return None
        lineage = Lineage("recurring", {"more_than": bound}, (hashes.as_parent, plan.as_parent))
        draft = Draft.begin(out, "recurring", RECURRING, lineage)
        make = partial(_recurring_worker, hashes, plan, draft.folder, bound)
        pool = replace(self.pool, publish_incomplete=False)  # as of the plan
        return build(draft, [Task(0, hashes.num_rows)], make, pool, log, phase="recurring")

    def _gather(
        self,
        inputs: "Inputs",
        hashes: Dataset,
        plan: Dataset,
        recurring: Dataset | None,
        draft: Draft,
        log: RunLog,
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
            partial(
                _gather_worker,
                inputs,
                plan,
                recurring,
                draft.folder,
                self.split,
                self._filters,
            ),
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


def _hash_worker(inputs: Inputs, out: Folder, captions: bool) -> Callable[[Task], ShardRecord]:
    def work(task: Task) -> ShardRecord:
        # Every byte is checked here, so that the phases after this one need not.
        raw = inputs.open(task.number, verify=True)
        with new_shard(out, task.number) as shard:
            shard.open(HASHES, ROWS_PER_BATCH["hashes"]).write(hash_shard(raw))
            if captions:
                digests = shard.open(
                    CAPTION_DIGESTS, ROWS_PER_BATCH["caption_digests"], attachment="captions"
                )
                digests.write(caption_digests(raw.table.column("captions")))
            return shard.commit(pictures=Account.all_kept(raw.table.num_rows))

    return work


def _plan_worker(
    hashes: Dataset,
    evaluation: Dataset | None,
    out: Folder,
    config: PlanConfig,
    near: NearDuplicateConfig,
) -> Callable[[Task], ShardRecord]:
    def work(task: Task) -> ShardRecord:
        rows = [record.entry.rows for record in hashes.records.values()]
        shards = np.repeat(list(hashes.records), rows)
        held_out = None if evaluation is None else _whole(evaluation)
        plan = make_plan(_whole(hashes), shards, config, near, held_out)
        return _commit_all(out, task.number, "plan", plan)

    return work


def _whole(hashes: Dataset) -> pa.Table:
    tables = [shard.table for shard in hashes.shards()]
    return pa.concat_tables([HASHES.empty_table(), *tables])


def _with_pictures(location: str) -> Dataset:
    """Raises ConfigError where the dataset has no pictures."""
    dataset = Dataset.open(location)
    if "picture" not in dataset.manifest.schema:
        raise ConfigError(f"evaluation: {location}: holds {dataset.kind!r}, which has no pictures")
    return dataset


def _recurring_worker(
    hashes: Dataset, plan: Dataset, out: Folder, more_than: int
) -> Callable[[Task], ShardRecord]:
    def work(task: Task) -> ShardRecord:
        digests = ((number, hashes.attachment(number, "captions")) for number in hashes.records)
        table = count_recurring(plan.shard(0).table, digests, more_than)
        return _commit_all(out, task.number, "recurring", table)

    return work


def _gather_worker(
    inputs: Inputs,
    plan: Dataset,
    recurring: Dataset | None,
    out: Folder,
    split: SplitConfig,
    filters: Sequence[Filter],
) -> Callable[[Task], ShardRecord]:
    table = plan.shard(0).table
    often = recurring.shard(0).table if recurring else RECURRING.empty_table()
    judge = partial(filter_captions, filters=filters, recurring=often)

    def work(task: Task) -> ShardRecord:
        rows = rows_of_shard(table, task.number)
        curated = gather(
            rows, inputs.rows, split, inputs.is_down, extra=inputs.extra, filter_captions=judge
        )
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
