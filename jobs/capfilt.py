"""`viaduct capfilt`: captions that a checkpoint writes, scored by judges beside the web's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from jobs.build import build, running
from jobs.caption_roles import open_captioner, open_judges, roles_to_tell
from jobs.caption_worker import CaptionWork, CaptionWorker
from jobs.cluster import ClusterConfig, cluster_device, session
from jobs.compute import ComputeConfig
from jobs.run_log import RunLog
from jobs.shards import PoolConfig, Task
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features
from model.generation.settings import GenerationConfig
from pipeline.candidates import filters_of_written
from pipeline.captions import open_captions
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.filters import described
from pipeline.lineage import Lineage
from pipeline.schemas import CANDIDATES
from pipeline.selected import SUMMARY, read_summary, summary_of, told_of_candidates
from pipeline.shard import MANIFEST
from pipeline.shard_cache import CacheConfig
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view

_PHASE = "caption"
"""What run.json and progress call it."""


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
    """Training folder or checkpoint of stage 1, trained by itg, that writes; without one nothing is
    written."""

    judge: tuple[str, ...] = ()
    """Who scores: checkpoints of stage 1, trained by itc and, to tell match probabilities, itm; or
    `clip:NAME_OR_FOLDER` of transformers. Each gives scores of its own. By default the
    captioner."""

    out: str
    """Folder or URI of the dataset `candidates` to make; a job that was stopped goes on there."""

    split: Literal["train", "validation", "test", "all"] = "train"
    """Whose pictures are captioned; the others keep their captions as they are."""

    limit: int | None = None
    """Pictures of the split at most, the first ones that can be captioned; the others keep their
    captions too."""

    filters: Literal["none", "default", "strict"] = "default"
    """Which written captions are rejected, as by curate, beside those that are empty, repeat
    themselves, or that the picture has already."""

    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(
            method="nucleus", num_captions=10, num_beams=10, min_tokens=2
        )
    )
    """How captions are written: by default ten draws, as many as BLIP-2 ranks, of the lengths that
    the captioner has learned. With --method beam the ten best of ten beams."""

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
            ConfigError: datasets, checkpoints and judges do not belong together, who writes or
                judges has never learned it, or there is no picture to caption.
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
                quota=None,
                compute=self.compute,
                device=cluster_device(self.compute.device),
            )
            return self._make(work)

    def _make(self, work: CaptionWork) -> Dataset:
        if work.out.size(MANIFEST) is None:  # else it is known to have some
            work = self._with_quota(work)
        draft = Draft.begin(work.out, "candidates", CANDIDATES, self._lineage(work))
        made, summary = draft.whole(), read_summary(work.out)
        if made is None or summary is None:
            with running(self, draft) as log:
                made = made or self._build(work, draft, log)
                with log.phase("summary"):
                    summary = summary_of(made)
                    made.folder.publish_json(SUMMARY, summary)
                for line in _pace(log.told(_PHASE)):
                    print(line)
        for line in told_of_candidates(summary):
            print(line)
        return made

    def _with_quota(self, work: CaptionWork) -> CaptionWork:
        """Raises ConfigError where there is no picture to caption."""
        quota = work.captioned_rows().counts(work.captions.records, self.limit)
        if any(quota.values()):
            return replace(work, quota=quota)
        where = work.captions.folder
        raise ConfigError(f"split: {where} has no picture of {self.split!r} with image tokens")

    def _build(self, work: CaptionWork, draft: Draft, log: RunLog) -> Dataset:
        work = work if work.quota is not None else self._with_quota(work)
        tasks = [
            Task(
                record.number,
                record.entry.rows,
                record.captions.num_in if record.captions else 0,
                work.quota[record.number] if work.quota else None,
            )
            for record in work.captions.manifest.records
        ]
        pool = self.pool.on(work.device, self.compute.threads)
        return build(draft, tasks, partial(CaptionWorker, work), pool, log, phase=_PHASE)

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


def _pace(phase: Mapping[str, Any]) -> Iterator[str]:
    """What was done in a run and how fast, for people; nothing where nothing was."""
    sums = phase.get("sums", {})
    if pictures := sums.get("pictures_captioned"):
        captions = int(sums["captions_written"])
        done = f"{captions:,} captions of" if captions else "the captions of"
        rate = (captions or pictures) / max(phase["seconds"], 1e-3)
        yield (
            f"{done} {int(pictures):,} pictures {'written and ' if captions else ''}judged, "
            f"{rate:,.1f} {'captions' if captions else 'pictures'}/s"
        )
