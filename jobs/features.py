"""`viaduct features`: the frozen vision encoder's tokens of all pictures, once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch
import tyro
from ray.exceptions import RayTaskError

from jobs.build import build, running
from jobs.cluster import ClusterConfig, session
from jobs.shards import PoolConfig, Task
from model.pretrained.encoders import EncoderConfig, EncoderSpec, load_encoder
from pipeline.accounting import Account
from pipeline.dataset import Dataset, Shard
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError
from pipeline.features import batches, tokens_column
from pipeline.lineage import Lineage
from pipeline.schemas import ROWS_PER_BATCH, features_schema
from pipeline.shard import ShardRecord, ShardWriter, new_shard
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How image tokens are computed and stored."""

    dtype: Literal["fp16", "bf16"] = "fp16"
    """Type of the stored values; fp16 is finer, bf16 holds larger ones."""

    batch_size: int = 32
    """Pictures the encoder takes at once. With another size the last bits may differ, so it
    belongs to the lineage."""

    threads: int = 1
    """Threads of the encoder in each worker on a CPU; belongs to the lineage like batch_size."""

    decode_threads: int = 2
    """Threads in each worker that decode and transform pictures ahead of the encoder."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "decode_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Run the frozen vision encoder over `pairs` once: shard in, shard out, side by side."""

    pairs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")]
    """Dataset of kind `pairs`."""

    out: str
    """Folder or URI of the dataset `features` to make; a job that was stopped goes on there."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the encoder runs; `auto` takes GPUs where Ray has any. Belongs to the lineage."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    pool: PoolConfig = field(default_factory=lambda: PoolConfig(deadline_s=4 * 3600.0))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self) -> Dataset:
        """Make the dataset, or go on with it."""
        pairs = Dataset.open(self.pairs, "pairs")
        folder = Folder.at(self.out)
        with session(self.cluster):
            device = self._device()
            spec = _spec(self.encoder)
            lineage = Lineage(
                "features",
                {
                    "dtype": self.cache.dtype,
                    "batch_size": self.cache.batch_size,
                    "threads": self.cache.threads if device == "cpu" else None,
                    "device": device,
                },
                (pairs.as_parent,),
                {"encoder": spec.to_json()},
            )
            schema = features_schema(spec.num_tokens, spec.width, self.cache.dtype)
            draft = Draft.begin(folder, "features", schema, lineage)
            if published := draft.whole():
                return published
            tasks = [Task(r.number, r.entry.rows) for r in pairs.manifest.records]
            make = partial(FeatureWorker, pairs, folder, self.encoder, self.cache, device, spec)
            with running(self, draft) as log:
                return build(draft, tasks, make, self._pool(device), log, phase="encode")

    def _device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"

    def _pool(self, device: str) -> PoolConfig:
        """A worker on a GPU takes a whole one unless told otherwise; one on a CPU its threads."""
        if device == "cpu":
            cpus = max(self.pool.cpus_per_worker, float(self.cache.threads))
            return replace(self.pool, cpus_per_worker=cpus)
        return replace(self.pool, gpus_per_worker=self.pool.gpus_per_worker or 1.0)


class FeatureWorker:
    """Runs in the worker process: loads the encoder once, then encodes shard after shard."""

    def __init__(
        self,
        pairs: Dataset,
        out: Folder,
        encoder: EncoderConfig,
        cache: CacheConfig,
        device: str,
        spec: EncoderSpec,
    ) -> None:
        self._pairs, self._out, self._cache, self._device = pairs, out, cache, device
        if device == "cpu":
            torch.set_num_threads(cache.threads)
        elif not torch.cuda.is_available():
            raise ConfigError("device: 'cuda', but the worker sees no GPU; set --gpus-per-worker")
        self._encoder = load_encoder(encoder)
        if self._encoder.spec != spec:
            raise DatasetError(f"encoder: {spec.name}: this worker has other weights")
        self._transform = self._encoder.transform()
        self._encoder.to(device)

    def __call__(self, task: Task) -> ShardRecord:
        pairs = self._pairs.shard(task.number, verify=True)
        spec, dtype = self._encoder.spec, self._cache.dtype
        with ThreadPoolExecutor(self._cache.decode_threads) as threads:
            with new_shard(self._out, task.number) as shard:
                schema = features_schema(spec.num_tokens, spec.width, dtype)
                writer = shard.open(schema, ROWS_PER_BATCH["features"])
                for rows, pictures in batches(
                    pairs, self._cache.batch_size, self._transform, threads
                ):
                    self._write(writer, pairs, rows, pictures)
                return shard.commit(pictures=Account.all_kept(pairs.table.num_rows))

    def _write(self, writer: ShardWriter, pairs: Shard, rows: range, pictures: list[Any]) -> None:
        present = [picture is not None for picture in pictures]
        tokens = self._encode([p for p in pictures if p is not None])
        uids = pairs.table.column("uid").slice(rows.start, len(rows))
        column = tokens_column(tokens, present, uids.to_pylist(), self._cache.dtype)
        writer.write(pa.table({"uid": uids, "tokens": column}, schema=writer.schema))

    def _encode(self, pictures: list[torch.Tensor]) -> np.ndarray:
        """float32[N, P, C]; on a GPU in mixed precision, as BLIP-2 runs its frozen encoder."""
        spec = self._encoder.spec
        if not pictures:
            return np.zeros((0, spec.num_tokens, spec.width), np.float32)
        # What is to be stored as bf16 may be too large for fp16 on its way too.
        half = torch.bfloat16 if self._cache.dtype == "bf16" else torch.float16
        batch = torch.stack(pictures).to(self._device)
        with torch.autocast("cuda", half, enabled=self._device == "cuda"):
            return self._encoder(batch).float().cpu().numpy()


def _spec(config: EncoderConfig) -> EncoderSpec:
    """What the encoder is, found out by a worker: the head of a cluster may be small.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def describe() -> EncoderSpec:
        return load_encoder(config).spec

    try:
        return ray.get(ray.remote(describe).remote())
    except RayTaskError as error:
        raise error.cause from None
