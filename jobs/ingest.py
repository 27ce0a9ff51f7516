"""`viaduct ingest`: the pictures of a source into `raw`, with a ledger of all its rows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Literal

import tyro

from jobs.build import build, running
from jobs.cluster import ClusterConfig, session
from jobs.run_log import RunLog
from jobs.shards import PoolConfig, Task
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.download import download
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, Fetcher
from pipeline.filters import Filter, described
from pipeline.lineage import Lineage, Parent
from pipeline.picture_filters import PICTURE_FILTERS
from pipeline.pictures import PictureConfig
from pipeline.retry import RetrySource
from pipeline.schemas import RAW, ROWS_PER_BATCH, SLICE, with_extra
from pipeline.shard import ShardRecord, commit_table, new_shard
from pipeline.sources import Source, cut, num_captions, open_source
from pipeline.storage import Folder
from pipeline.url_tables import SourceColumns

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """Fetch or read the pictures of a source into `raw`, with a ledger of every row.

    SOURCE is a table of URLs or files and captions (.parquet, .arrow, .csv, .tsv, .jsonl; the last
    three also .gz or .zst), or of the pictures themselves (.parquet, .arrow), many of them by
    wildcards in quotes ('urls/*.parquet') or as a folder, in the order of their names, of any size,
    also on s3:// or gs:// (csv, tsv and jsonl without rows are passed over); WebDataset tars, in
    the same ways; a folder of pictures with captions beside them (cat.jpg and cat.txt); or one
    captions JSON of COCO or in Karpathy's format.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = None
    """What to read: a path or URI, also with wildcards. With --retry it only says where
    pictures that have no URLs lie."""

    out: str
    """Folder or URI of the dataset `raw` to make; a job that was stopped goes on there."""

    retry: str | None = None
    """An earlier dataset `raw`: fetch again what failed there, and nothing else, into OUT. Then
    give both to curate."""

    retry_classes: tuple[str, ...] = ()
    """With --retry, which outcomes of its ledger: `http_404`, `http_5*`, `dropped:too_many_pixels`,
    `*` in quotes for all. By default those that may pass: dns, refused, timeout, tls, connection,
    proxy, truncated, http_408, http_425, http_429, http_5*, deadline, internal."""

    picture_folder: str | None = None
    """Folder of the pictures that SOURCE lists as files; by default the one it lies in itself."""

    annotation_split: str | None = None
    """Of a JSON in Karpathy's format only the pictures of this split of his (`test`, `val`, `train`
    or `restval`); by default all, for curate splits. `viaduct evaluate annotations` uses it."""

    shard_rows: int = 1024
    """Rows of the source a shard."""

    filters: Literal["none", "default", "strict"] = "default"
    """Which pictures are dropped: none, those that show nothing (animated, tiny, strips, of one
    colour), or also what published recipes drop; docs/filters.md has the numbers."""

    columns: SourceColumns = field(default_factory=SourceColumns)
    picture: PictureConfig = field(default_factory=PictureConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows: {self.shard_rows} is not positive")
        if self.retry_classes and not self.retry:
            raise ConfigError("retry_classes: are those of --retry, which is not given")
        if self.fetch.shard_timeout_s >= self.pool.deadline_s:
            raise ConfigError(
                f"shard_timeout_s: {self.fetch.shard_timeout_s:g} is not below deadline_s "
                f"{self.pool.deadline_s:g}, at which the worker is killed and the shard begun again"
            )

    def run(self) -> Dataset:
        """Make the dataset, or go on with it."""
        source = self._source()
        folder = Folder.at(self.out)
        lineage = self._lineage(source)
        draft = Draft.begin(folder, "raw", with_extra(RAW, source.extra), lineage)
        if published := draft.whole():
            (folder / ".work").remove()  # a kill may have come before the removal below
            return published
        with running(self, draft) as log:
            slices = _slices(source, folder, lineage, self.shard_rows, log)
            tasks = [
                Task(r.number, r.entry.rows, r.captions.num_in if r.captions else 0)
                for r in slices.manifest.records
            ]
            make_worker = partial(
                _worker,
                slices,
                folder,
                self.picture,
                PICTURE_FILTERS[self.filters],
                self.fetch,
                source.open_fetcher,
            )
            with session(self.cluster):
                raw = build(draft, tasks, make_worker, self.pool, log, phase="fetch")
            (folder / ".work").remove()  # the ledger holds all that was in it
            return raw

    def _source(self) -> Source:
        given = None
        if self.source:
            given = open_source(
                self.source, self.columns, self.picture_folder, self.annotation_split
            )
        if self.retry:
            return self._retried(Dataset.open(self.retry, "raw"), given)
        if given is None:
            raise ConfigError("source: name what to read, or with --retry an earlier raw")
        return given

    def _retried(self, raw: Dataset, given: Source | None) -> Source:
        if lost := sum(raw.manifest.set_aside.values()):
            logger.warning("not retried, for no ledger has them: set_aside=%d", lost)
        earlier = raw.manifest.lineage.config
        for name, value in asdict(self.picture).items():
            if earlier.get(name) != value:
                logger.warning(
                    "otherwise than in raw: %s=%s then=%s", name, value, earlier.get(name)
                )
        return RetrySource(raw, self.retry_classes, given)

    def _lineage(self, source: Source) -> Lineage:
        config = {
            "shard_rows": self.shard_rows,
            "max_download_bytes": self.fetch.max_download_bytes,
            "ignore_opt_out": self.fetch.ignore_opt_out,
            "locations": source.locations,
            "filters": described(PICTURE_FILTERS[self.filters]),
            **asdict(self.picture),
        }
        if isinstance(source, RetrySource):
            config["retry"] = sorted(source.classes)
        parent = Parent("raw" if self.retry else "source", source.digest())
        return Lineage("ingest", config, (parent,))


def _slices(source: Source, folder: Folder, lineage: Lineage, rows: int, log: RunLog) -> Dataset:
    """The source cut into slices, each the input of one shard; made once, then found again."""
    lineage = Lineage("cut", {"shard_rows": rows}, lineage.parents)
    draft = Draft.begin(
        folder / ".work" / "source", "source", with_extra(SLICE, source.extra), lineage
    )
    if published := draft.whole():
        return published
    with log.phase("cut") as entry:
        records = []
        for number, table in enumerate(cut(source.tables(), rows)):
            records.append(
                commit_table(
                    draft.folder,
                    number,
                    table,
                    draft.rows_per_batch,
                    pictures=Account.all_kept(table.num_rows),
                    captions=Account.all_kept(num_captions(table)),
                )
            )
        entry["rows"] = sum(record.entry.rows for record in records)
    return draft.publish(records)


def _worker(
    slices: Dataset,
    out: Folder,
    picture: PictureConfig,
    filters: Sequence[Filter],
    fetch: FetchConfig,
    open_fetcher: Callable[[FetchConfig], Fetcher],
) -> Callable[[Task], ShardRecord]:
    """Runs in the worker: one fetcher, kept from shard to shard."""
    fetcher = open_fetcher(fetch)

    def work(task: Task) -> ShardRecord:
        slice_ = slices.shard(task.number, verify=True).table
        fetcher.expect(slice_.column("url").to_pylist())
        got = download(
            slice_,
            fetcher,
            picture,
            threads=fetch.threads,
            per_host=fetch.per_host,
            timeout_s=fetch.shard_timeout_s,
            filters=filters,
        )
        with new_shard(out, task.number) as shard:
            shard.open(got.raw.schema, ROWS_PER_BATCH["raw"]).write(got.raw)
            ledger = shard.open(got.ledger.schema, ROWS_PER_BATCH["ledger"], attachment="ledger")
            ledger.write(got.ledger)
            return shard.commit(pictures=got.pictures, captions=got.captions)

    return work
