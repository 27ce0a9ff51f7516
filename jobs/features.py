"""`viaduct features`: the frozen vision encoder's tokens of all pictures, once."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import ray
import tyro
from ray.exceptions import RayTaskError

from jobs.build import build, running
from jobs.capacity import actor_options, await_room
from jobs.cluster import ClusterConfig, cluster_device, session
from jobs.feature_worker import (
    SHARDS_AT_ONCE,
    CacheConfig,
    FeatureWork,
    FeatureWorker,
    publish_channels,
    read_channels,
)
from jobs.shards import PoolConfig, Task
from model.pretrained.augmentation import ViewsConfig
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.encoders import EncoderConfig, load_encoder
from pipeline.dataset import DRAFT, Dataset
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.shard import MANIFEST
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Features:
    """Run the frozen vision encoder over `pairs` once: shard in, shard out, side by side."""

    pairs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")]
    """Dataset of kind `pairs`."""

    out: str
    """Folder or URI of the dataset `features` to make, or of its views; a job that was stopped
    goes on there."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the encoder runs; `auto` takes GPUs where Ray has any. Belongs to the lineage."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    pool: PoolConfig = field(default_factory=lambda: PoolConfig(deadline_s=4 * 3600.0))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self) -> Dataset:
        """Make the dataset or its views, or go on with them; returns the view of evaluation."""
        pairs = Dataset.open(self.pairs, "pairs")
        out = Folder.at(self.out)
        if self.views.views > 1 and (out.size(MANIFEST) or out.size(DRAFT)):
            raise ConfigError(f"{out}: holds features of one view; choose another for several")
        with session(self.cluster):
            device = cluster_device(self.device)
            spec = _spec(self.encoder, self.pool.on(device, self.cache.threads))
            made = []
            for view in range(self.views.views):
                folder = out if self.views.views == 1 else out / f"view-{view}"
                work = FeatureWork(
                    pairs, folder, self.encoder, spec, self.cache, device, self.views, view
                )
                made.append(self._make(work))
        return made[0]

    def _make(self, work: FeatureWork) -> Dataset:
        draft = Draft.begin(work.out, "features", work.schema, self._lineage(work))
        if published := draft.whole():
            return published
        tasks = [Task(r.number, r.entry.rows) for r in work.pairs.manifest.records]
        pool = self.pool.on(work.device, self.cache.threads)
        phase = "encode" if self.views.views == 1 else f"encode view {work.view}"
        with running(self, draft) as log:
            if self.cache.dtype == "int8":
                with log.phase("calibrate"):
                    work = _calibrated(work, pool)
            make = partial(FeatureWorker, work)
            return build(draft, tasks, make, pool, log, phase=phase, at_once=SHARDS_AT_ONCE)

    def _lineage(self, work: FeatureWork) -> Lineage:
        config: dict[str, Any] = {
            "dtype": self.cache.dtype,
            "batch_size": self.cache.batch_size,
            "threads": self.cache.threads if work.device == "cpu" else None,
            "device": work.device,
        }
        if self.cache.dtype == "int8":
            config["calibration_pictures"] = self.cache.calibration_pictures
        config |= self.views.lineage(work.view)
        encoder = {"encoder": work.spec.to_json()}
        return Lineage("features", config, (work.pairs.as_parent,), encoder)


def _spec(config: EncoderConfig, pool: PoolConfig) -> EncoderSpec:
    """What the encoder is, found out where it will run: the head of a cluster may be small.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def describe() -> EncoderSpec:
        return load_encoder(config).spec

    return _remotely(describe, pool)


def _calibrated(work: FeatureWork, pool: PoolConfig) -> FeatureWork:
    """The work with the channels of int8: those of an earlier run, or found out by a worker."""
    channels = read_channels(work.out)
    if channels is None:

        def calibrate() -> Any:
            return FeatureWorker(work).channels()

        channels = _remotely(calibrate, pool)
        publish_channels(work.out, channels)
    return replace(work, channels=channels)


def _remotely(function: Any, pool: PoolConfig) -> Any:
    """What a function returns, or raises, in a process that has what a worker has."""
    each = pool.bundle
    await_room(each)
    try:
        return ray.get(ray.remote(function).options(**actor_options(each)).remote())
    except RayTaskError as error:
        raise error.cause from None
