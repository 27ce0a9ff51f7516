"""`viaduct capfilt`: captions that a checkpoint writes, scored by judges beside the web's."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from jobs.build import build, running
from jobs.caption_roles import open_captioner, open_judges, roles_to_tell
from jobs.caption_worker import CaptionWork, CaptionWorker
from jobs.cluster import ClusterConfig, cluster_device, session
from jobs.compute import ComputeConfig
from jobs.shards import PoolConfig, Task
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features
from model.generation.settings import GenerationConfig
from pipeline.candidates import SYNTHETIC, WEB, filters_of_written
from pipeline.captions import open_captions
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.filters import described
from pipeline.lineage import Lineage
from pipeline.schemas import CANDIDATES
from pipeline.selected import Selected
from pipeline.shard_cache import CacheConfig
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Capfilt:
    """Write captions of pictures, and score them and the web's: what `select-captions` reads.

    The captioner is a checkpoint of stage 1. A judge should be another one, fine-tuned apart on
    clean pairs, or a CLIP: one that judges its own captions forgives them. With a judge alone the
    captions that are there are scored, and nothing is written.
    """

    features: str
    """Dataset of kind `features`; what is written and judged by stage 1 is seen in it."""

    pairs: str
    """Dataset `pairs` beside it: captions, split and, for a CLIP, the pictures."""

    captions: str | None = None
    """Dataset `captions` of an earlier round, in place of those in `pairs`: the web's compete
    again, and those written ones that were chosen."""

    captioner: str | None = None
    """Training folder or checkpoint of stage 1 that writes; without one nothing is written."""

    judge: tuple[str, ...] = ()
    """Who scores: checkpoints of stage 1, or `clip:NAME_OR_FOLDER` of transformers; each gives
    scores of its own. By default the captioner."""

    out: str
    """Folder or URI of the dataset `candidates` to make; a job that was stopped goes on there."""

    split: Literal["train", "validation", "test", "all"] = "train"
    """Whose pictures are captioned; the others keep their captions as they are."""

    limit: int | None = None
    """Pictures of the split at most, the first ones; the others keep their captions too."""

    filters: Literal["none", "default", "strict"] = "default"
    """Which written captions are rejected, as by curate, beside those that are empty, repeat
    themselves, or that the picture has already."""

    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(method="nucleus", num_captions=10, min_tokens=2)
    )
    """How captions are written: by default ten draws, as many as BLIP-2 ranks, of the lengths that
    the captioner has learned."""

    compute: ComputeConfig = field(default_factory=lambda: ComputeConfig(batch_size=16))
    cache: CacheConfig = field(default_factory=CacheConfig)
    pool: PoolConfig = field(default_factory=lambda: PoolConfig(deadline_s=4 * 3600.0))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.captioner is None and not self.judge:
            raise ConfigError("captioner, judge: name one of them at least")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: {self.limit} is not positive")

    def run(self) -> Dataset:
        """Make the dataset, or go on with it.

        Raises:
            ConfigError: datasets, checkpoints and judges do not belong together.
        """
        captioner = None if self.captioner is None else open_captioner(self.captioner)
        judges = open_judges(self.judge, captioner)
        features = open_evaluation_view(self.features, self.cache)
        for its in (captioner, *judges):
            if isinstance(its, Checkpoint):
                check_features(its, features)
        pairs = Dataset.open(self.pairs, "pairs")
        captions = pairs if self.captions is None else open_captions(self.captions)
        check_side_by_side(pairs, features, captions)
        with session(self.cluster):
            work = CaptionWork(
                features=features,
                pairs=pairs,
                captions=captions,
                out=Folder.at(self.out),
                captioner=captioner,
                judges=judges,
                generation=self.generation,
                filters=filters_of_written(self.filters),
                split=self.split,
                quota=self._quota(captions),
                compute=self.compute,
                device=cluster_device(self.compute.device),
            )
            return self._make(work)

    def _make(self, work: CaptionWork) -> Dataset:
        draft = Draft.begin(work.out, "candidates", CANDIDATES, self._lineage(work))
        if published := draft.whole():
            return published
        tasks = [
            Task(r.number, r.entry.rows, r.captions.num_in if r.captions else 0)
            for r in work.captions.manifest.records
        ]
        pool = self.pool.on(work.device, self.compute.threads)
        with running(self, draft) as log:
            made = build(draft, tasks, partial(CaptionWorker, work), pool, log, phase="caption")
            with log.phase("diversity") as entry:
                entry |= _diversity(made)
        return made

    def _quota(self, captions: Dataset) -> dict[int, int] | None:
        """Shard to how many pictures of the split are captioned; None where all are."""
        if self.limit is None:
            return None
        left, quota = self.limit, {}
        for number in captions.records:
            column = captions.shard(number, columns=["split"]).table.column("split").to_pylist()
            quota[number] = min(left, sum(self.split in ("all", split) for split in column))
            left -= quota[number]
            if not left:
                break
        return quota

    def _lineage(self, work: CaptionWork) -> Lineage:
        config: dict[str, Any] = {
            "split": self.split,
            "limit": self.limit,
            **self.compute.lasting(work.device),
        }
        parents: Sequence[Dataset] = (work.features, work.pairs)
        if self.captions is not None:
            parents = (*parents, work.captions)
        if work.captioner is not None:
            config["generation"] = asdict(self.generation)
            config["filters"] = described(work.filters)
        frozen = roles_to_tell(work.captioner, work.judges)
        return Lineage("capfilt", config, tuple(its.as_parent for its in parents), frozen)


def _diversity(candidates: Dataset) -> dict[str, dict[str, float | int]]:
    """Of captions that passed cleaning, the web's and the written ones of the same pictures."""
    columns = ["uid", "captions", "split"]
    tables = (candidates.shard(its, columns=columns).table for its in candidates.records)
    counted = Selected.total(map(Selected.of, tables))
    parts = {WEB: counted.web_diversity, SYNTHETIC: counted.synthetic_diversity}
    found = {source: diversity.to_json() for source, diversity in parts.items()}
    for source, told in found.items():
        figures = " ".join(f"{name}={value:g}" for name, value in told.items())
        logger.info("diversity source=%s %s", source, figures)
    return found
