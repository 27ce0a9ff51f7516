"""From pictures to a search on a GPU: features, two steps over nccl, captions, an index."""

import json
import math

import faiss
import numpy as np
import pytest
import torch

from jobs.cli import main
from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_a_gpu_takes_pictures_to_an_index(tmp_path, data, stage1_command, metrics):
    cuda = ("--device", "cuda")
    vit = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random")
    features, stage1 = tmp_path / "features", tmp_path / "stage1"
    run("features", data / "pairs", "--out", features, *vit, *cuda)
    assert Dataset.open(str(features)).num_rows == Dataset.open(str(data / "features")).num_rows

    two = ("--steps", 2, "--validate-every", 2, "--checkpoint-every", 2, "--itm-joins-at", 0)
    ranks = ("--ranks", min(2, torch.cuda.device_count()))
    run(*stage1_command(stage1, "--features", features, *two, *ranks, *cuda))
    lines = metrics(stage1)
    assert [(line["split"], line["step"]) for line in lines] == [
        *(("train", 1), ("train", 2), ("validation", 2)),
    ]
    assert all(math.isfinite(value) for line in lines for value in list(line.values())[2:])
    tensors = Checkpoint.open(str(stage1)).tensors()
    assert all(
        value.dtype == torch.float32 and value.isfinite().all() for value in tensors.values()
    )

    short = ("--max-tokens", 8, *cuda)
    where = ("--features", features, "--pairs", data / "pairs", "--out", tmp_path / "candidates")
    run("capfilt", *where, "--captioner", stage1, "--limit", 5, "--num-captions", 2, *short)
    rows = [
        r for s in Dataset.open(str(tmp_path / "candidates")).shards() for r in s.table.to_pylist()
    ]
    written = [c for row in rows for c in row["captions"] if c["source"] == "synthetic"]
    scores = [score for row in rows for c in row["captions"] for score in c["scores"]]
    assert len(written) == 2 * 5
    assert scores
    assert all(math.isfinite(its["itc"]) and 0 <= its["itm"] <= 1 for its in scores)

    embeddings, index = tmp_path / "embeddings", tmp_path / "index"
    where = ("--features", features, "--captions", data / "pairs")
    run("embed", "--checkpoint", stage1, *where, "--out", embeddings, *cuda)
    run("index", embeddings, "--pairs", data / "pairs", "--out", index)

    manifest = json.loads((index / "index.json").read_text())
    vectors = np.fromfile(index / "00000" / "picture_vectors.f32", np.float32)
    stored = faiss.IndexFlatIP(manifest["embed_dim"])
    stored.add(vectors.reshape(-1, manifest["embed_dim"]))
    there = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, stored)
    queries = stored.reconstruct_n(0, 40)[::8]
    scores, numbers = there.search(queries, 4)
    expected, _ = stored.search(queries, 4)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert (numbers[:, 0] >= 0).all()
