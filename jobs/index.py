"""`viaduct index`: indexes of contrastive embeddings, for search."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

import tyro

from indexes.adding import next_addition, publish_addition
from indexes.building import build_shard, publish_made
from indexes.kinds import IndexConfig
from indexes.parts import read_parts
from indexes.retrieval import RetrievalIndex
from indexes.sources import Sources, checkpoint_of
from indexes.storage import IndexShard, begin, committed_shard
from indexes.threads import use_threads
from jobs.build import Incomplete, running
from jobs.cluster import ClusterConfig, session
from jobs.progress import Progress
from jobs.prometheus import ShardMetrics
from jobs.search_places import absolute
from jobs.shards import PoolConfig, Task, run_shards
from model.checkpoint import Checkpoint
from pipeline.claim import claimed
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.shard import MANIFEST
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Index:
    """Index embeddings with FAISS; a picture is as close to a text as its closest query output.

    Approximate indexes only propose: what is found is scored exactly, by vectors that the index
    keeps on disk. Killed, the same command goes on. More than --shard-pictures are built by Ray.
    An index that is there takes further pictures by --add-to, in place of --out.
    """

    embeddings: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Folder that holds `image_embeddings` and, for searches of captions, `text_embeddings`; or a
    dataset of kind `image_embeddings` itself."""

    pairs: str
    """Dataset of kind `pairs` beside them; URLs and captions to show are taken from it."""

    captions: str | None = None
    """Dataset of kind `captions` beside them, if its captions were embedded; they are shown then.
    """

    out: str | None = None
    """Folder or URI of the index to make."""

    add_to: str | None = None
    """Folder or URI of a finished index that gets these pictures too, in place of --out. They are
    of another `pairs`, embedded by the same checkpoint; those it has already are left out, and
    nothing of it is made anew. Searches and running servers see all of them as soon as it ends."""

    checkpoint: str | None = None
    """Training folder or checkpoint of stage 1 that made the embeddings; it is checked, and
    remembered for `viaduct search`."""

    features: str | None = None
    """Features that the pictures' embeddings were made of; remembered for re-ranking by `viaduct
    search` and `viaduct serve`."""

    split: Literal["all", "train", "validation", "test"] = "all"
    """Which pictures to index."""

    threads: int | None = None
    """Cores that an index shard is built with; by default all where there is one shard, and one for
    each where there are several."""

    config: IndexConfig = field(default_factory=IndexConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if (self.out is None) == (self.add_to is None):
            raise ConfigError("out, add_to: give one of them")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: {self.threads} is not positive")

    def run(self) -> RetrievalIndex:
        """Make the index, or add to it, unless that is done."""
        images, texts = self._embeddings()
        pairs = Dataset.open(self.pairs, "pairs")
        chosen = None if self.captions is None else Dataset.open(self.captions, "captions")
        sources = Sources(pairs, images, texts, self.split, chosen, self.config)
        self._check_checkpoint(images)
        self._check_features(images)
        if self.out is not None:
            folder = Folder.at(self.out)
            self._make(folder, sources)
        else:
            folder = Folder.at(self.add_to or "")
            self._add(folder, sources)
        return RetrievalIndex.open(folder)

    def _make(self, folder: Folder, sources: Sources) -> None:
        """Make an index in a folder, unless it is there."""
        draft = begin(folder, sources.lineage)
        if draft is None:
            return
        progress = Progress("index", sources.images.num_rows, 0, "pictures")
        shards = list(sources.index_shards())
        with (
            running(self._from_anywhere(), draft) as log,
            log.phase("index", folder, shards=len(shards)),
        ):
            try:
                self._build(folder, sources, shards, progress)
                log.claim.check()
                publish_made(folder, sources)
            finally:
                progress.close()

    def _add(self, folder: Folder, sources: Sources) -> None:
        """Add to the index in a folder, unless that is done."""
        read_parts(folder)  # a lock would make the folder
        with claimed(folder, "viaduct index") as claim:
            addition = next_addition(folder, sources)
            if addition is None:
                logger.info("already there: %s has what is to be added", folder)
                return
            if addition.num_known:
                logger.info(
                    "left out: %d of %d pictures, which %s has already",
                    *(addition.num_known, addition.num_wanted, folder),
                )
            self._make(addition.folder, addition.sources)
            claim.check()
            publish_addition(folder, addition.folder)

    def _build(
        self, folder: Folder, sources: Sources, shards: list[tuple[int, ...]], progress: Progress
    ) -> None:
        """Make the index shards: here where there is one, else by Ray.

        Raises:
            ConfigError, DatasetError: as `build_shard`.
            Incomplete: shards were set aside, and the index is not to be published without them.
        """
        if len(shards) == 1:
            if self.threads is not None:
                use_threads(self.threads)
            build_shard(folder, sources, 0, shards[0], progress.advance)
            return
        tasks = [
            Task(number, sum(sources.images.records[n].entry.rows for n in together))
            for number, together in enumerate(shards)
        ]
        todo = [task for task in tasks if committed_shard(folder, task.number) is None]
        progress.advance(sum(task.rows for task in tasks if task not in todo))
        threads = self.threads or 1
        with session(self.cluster):
            outcome = run_shards(
                partial(_worker, folder, sources, threads),
                todo,
                self.pool.on("cpu", threads),
                lambda task: progress.advance(task.rows),
                metrics=ShardMetrics(folder.name, "index", len(todo)),
            )
        if outcome.set_aside and not self.pool.publish_incomplete:
            raise Incomplete(folder, outcome, len(tasks) - len(outcome.set_aside))

    def _embeddings(self) -> tuple[Dataset, Dataset | None]:
        folder = Folder.at(self.embeddings)
        if folder.size(MANIFEST) is not None:
            return Dataset.open(folder, "image_embeddings"), None
        if not (folder / "image_embeddings").exists():
            raise ConfigError(f"{folder}: holds no image_embeddings; `viaduct embed` makes them")
        images = Dataset.open(folder / "image_embeddings", "image_embeddings")
        texts = folder / "text_embeddings"
        return images, Dataset.open(texts, "text_embeddings") if texts.exists() else None

    def _check_checkpoint(self, images: Dataset) -> None:
        if self.checkpoint is None:
            return
        given, made = Checkpoint.open(self.checkpoint).digest, checkpoint_of(images)["digest"]
        if given != made:
            raise ConfigError(
                f"{images.folder} was made with checkpoint {made[:16]}, "
                f"not with {self.checkpoint} ({given[:16]})"
            )

    def _check_features(self, images: Dataset) -> None:
        if self.features is None:
            return
        features = open_evaluation_view(self.features)
        if features.digest not in {parent.digest for parent in images.manifest.lineage.parents}:
            raise ConfigError(
                f"{images.folder} was not made of {features.folder} ({features.digest[:16]})"
            )

    def _from_anywhere(self) -> "Index":
        """With absolute paths, for a search that is called from another folder."""
        return replace(
            self,
            embeddings=absolute(self.embeddings),
            pairs=absolute(self.pairs),
            captions=None if self.captions is None else absolute(self.captions),
            out=None if self.out is None else absolute(self.out),
            add_to=None if self.add_to is None else absolute(self.add_to),
            checkpoint=None if self.checkpoint is None else absolute(self.checkpoint),
            features=None if self.features is None else absolute(self.features),
        )


def _worker(folder: Folder, sources: Sources, threads: int) -> Callable[[Task], IndexShard]:
    """Builds index shards in a process of its own."""
    use_threads(threads)
    shards = list(sources.index_shards())

    def work(task: Task) -> IndexShard:
        return build_shard(folder, sources, task.number, shards[task.number], lambda rows: None)

    return work
