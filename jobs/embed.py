"""`viaduct embed`: contrastive embeddings of pictures and captions, by a stage-1 checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from jobs.build import build, running
from jobs.cluster import ClusterConfig, cluster_device, session
from jobs.compute import ComputeConfig
from jobs.shards import PoolConfig, Task
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features, load_stage1
from model.stage1 import Stage1
from pipeline.accounting import Account
from pipeline.captions import kept_texts, open_captions
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.embeddings import image_rows, text_rows
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.loader import as_tensor
from pipeline.schemas import ROWS_PER_BATCH, image_embeddings_schema, text_embeddings_schema
from pipeline.shard import ShardRecord, commit_table
from pipeline.shard_cache import CacheConfig
from pipeline.storage import Folder
from pipeline.token_reader import ShardTokens, has_tokens
from pipeline.views import open_evaluation_view

Embedder = Callable[[Stage1, Dataset, int, int], pa.Table]
"""A stage-1 model, a dataset, a shard's number and a batch size to the shard's rows."""


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed pictures (all query outputs) and captions, row for row beside `pairs`.

    Pictures' embeddings do not depend on captions: for new captions give --captions alone.
    """

    checkpoint: str
    """Training folder or checkpoint of stage 1."""

    out: str
    """Folder or URI; `image_embeddings` and `text_embeddings` are made in it."""

    features: str | None = None
    """Dataset of kind `features`, for `image_embeddings`."""

    captions: str | None = None
    """Dataset with captions (`pairs` or `captions`), for `text_embeddings`."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.features is None and self.captions is None:
            raise ConfigError("features, captions: name at least one of them")

    def run(self) -> list[Dataset]:
        """Make the datasets, or go on with them."""
        checkpoint = Checkpoint.open(self.checkpoint, 1)
        size, width = checkpoint.config["num_queries"], checkpoint.config["embed_dim"]
        made = []
        with session(self.cluster):
            if self.features is not None:
                features = open_evaluation_view(self.features, self.cache)
                check_features(checkpoint, features)
                schema = image_embeddings_schema(size, width)
                made.append(self._make(checkpoint, features, "image", schema, embed_shard_pictures))
            if self.captions is not None:
                captions = open_captions(self.captions)
                schema = text_embeddings_schema(width)
                made.append(self._make(checkpoint, captions, "text", schema, embed_shard_texts))
        return made

    def _make(
        self,
        checkpoint: Checkpoint,
        source: Dataset,
        of: str,
        schema: pa.Schema,
        embedder: Embedder,
    ) -> Dataset:
        device = cluster_device(self.compute.device)
        frozen = {"checkpoint": {"digest": checkpoint.digest, "stage": checkpoint.stage}}
        lineage = Lineage("embed", self.compute.lasting(device), (source.as_parent,), frozen)
        kind = f"{of}_embeddings"
        draft = Draft.begin(Folder.at(self.out) / kind, kind, schema, lineage)
        if published := draft.whole():
            return published
        tasks = [Task(r.number, r.entry.rows) for r in source.manifest.records]
        make = partial(_worker, checkpoint, source, draft.folder, self.compute, device, embedder)
        with running(self, draft) as log:
            pool = self.pool.on(device, self.compute.threads)
            return build(draft, tasks, make, pool, log, phase=f"embed {of}s")


def _worker(
    checkpoint: Checkpoint,
    source: Dataset,
    out: Folder,
    config: ComputeConfig,
    device: str,
    embedder: Embedder,
) -> Callable[[Task], ShardRecord]:
    if device == "cpu":
        torch.set_num_threads(config.threads)
    stage1 = load_stage1(checkpoint, device)

    def work(task: Task) -> ShardRecord:
        table = embedder(stage1, source, task.number, config.batch_size)
        return commit_table(
            out,
            task.number,
            table,
            ROWS_PER_BATCH[out.name],
            pictures=Account.all_kept(table.num_rows),
        )

    return work


def embed_shard_pictures(
    stage1: Stage1, features: Dataset, number: int, batch_size: int
) -> pa.Table:
    """The rows of `image_embeddings` beside a shard of features."""
    shard = features.shard(number, verify=True)
    present = has_tokens(shard)
    rows = np.flatnonzero(present)
    tokens = ShardTokens(shard, features.manifest.rows_per_batch)
    device = stage1.temperature.device
    vectors = [np.zeros((0, stage1.config.num_queries, stage1.config.embed_dim), np.float32)]
    for start in range(0, len(rows), batch_size):
        batch = as_tensor(tokens.read(rows[start : start + batch_size].tolist()))
        vectors.append(stage1.embed_pictures(batch.to(device)).float().cpu().numpy())
    uids = shard.table.column("uid").to_pylist()
    return image_rows(uids, np.concatenate(vectors), present.tolist())


def embed_shard_texts(stage1: Stage1, captions: Dataset, number: int, batch_size: int) -> pa.Table:
    """The rows of `text_embeddings` beside a shard of captions."""
    shard = captions.shard(number)
    live = shard.live.to_pylist()
    column = shard.table.column("captions").to_pylist()
    rows = [its if here else None for its, here in zip(column, live, strict=True)]
    texts = [text for kept in kept_texts(rows) for _, text in kept]
    vectors = [np.zeros((0, stage1.config.embed_dim), np.float32)]
    for start in range(0, len(texts), batch_size):
        batch = stage1.embed_texts(texts[start : start + batch_size])
        vectors.append(batch.float().cpu().numpy())
    return text_rows(shard.table.column("uid").to_pylist(), rows, np.concatenate(vectors))
