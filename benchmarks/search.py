"""Queries a second and recall of `viaduct index --kind auto` beside a torch brute force.

    python benchmarks/search.py [--pictures N] [--vectors-per-picture V] [--embeddings E] [--work W]
                                [--curve FILE.svg]

Pictures of 32 vectors of 256 values and captions are resampled from the embeddings of a trained
checkpoint (`resampled_embeddings.py` says how). Without --embeddings a stage 1 of that size is
trained by ITC on what `make demo` leaves, into W, and kept there; the resampled datasets and their
indexes are in W only while they are measured. Queries are captions that nothing was tuned on.

For 1,000, 10,000 and N pictures, 100,000 by default, an index is built from datasets on disk and
opened as `viaduct search` opens it. The brute force is one float32 product of the queries with all
vectors, the best of each picture and `topk`, in the memory of this process, in blocks for a batch.
Both answer by turns, one query at a time and in batches of 64, with all cores; medians count. What
is found is right if the brute force has it among its ten, or scores it like its tenth.

The last line is one JSON object, of the largest set: queries a second over the brute force's one at
a time (`speedup_single`) and in batches (`speedup_batch`), `recall`, `bytes_per_picture` in memory,
`stored_bytes_per_picture` with the vectors for exact scores, `build_s`, and the cosine `gap`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch
from resampled_embeddings import Embedded, distances

from indexes.approximate import TUNED_FOR, ApproximateIndex
from indexes.building import build
from indexes.gathering import PICTURE_VECTORS, read_vectors
from indexes.hits import Searcher
from indexes.kinds import IndexConfig
from indexes.proposer import Width
from indexes.retrieval import RetrievalIndex
from indexes.sources import Sources
from indexes.storage import PICTURE_INDEX, begin
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.embeddings import image_rows, text_rows
from pipeline.lineage import Lineage
from pipeline.schemas import PAIRS, image_embeddings_schema, text_embeddings_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder

Search = Callable[[np.ndarray], np.ndarray]
"""Captions [n, E] to the places of ten pictures each [n, 10]."""

BATCH = 64
RECALL_QUERIES = 512
ROUNDS = 5
SHARD_ROWS = 4096
PICTURES_AT_ONCE = 512
TRAINING = {"recipe": "demo", "num-queries": 32, "embed-dim": 256, "losses": "itc", "steps": 200}
CHECKPOINT = {"checkpoint": {"digest": "0" * 64, "stage": 1}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--vectors-per-picture", type=int, help="merge the 32 into so many")
    parser.add_argument("--embeddings", help="made by `viaduct embed`, of captions too")
    parser.add_argument("--demo", default="runs/demo", help="what `make demo` left, to train on")
    parser.add_argument("--work", default="runs/search-benchmark")
    parser.add_argument("--curve", help="SVG file of recall against queries a second")
    arguments = parser.parse_args()
    work = Path(arguments.work)
    home = Path(arguments.embeddings or embedded(Path(arguments.demo), work))
    real = Embedded.read(
        Dataset.open(str(home / "image_embeddings")), Dataset.open(str(home / "text_embeddings"))
    )
    print(
        f"cores {faiss.omp_get_max_threads()}, FAISS {faiss.__version__}, torch {torch.__version__}"
    )
    print(f"real: {len(real.pictures):,} pictures, {told(distances(real.pictures, real.captions))}")
    config = IndexConfig(vectors_per_picture=arguments.vectors_per_picture)
    sizes = sorted({size for size in (1_000, 10_000) if size < arguments.pictures})
    for size in [*sizes, arguments.pictures]:
        found = of_size(real, size, config, work / f"{size}", arguments.curve)
        print(json.dumps({"pictures": size} | found), flush=True)
    print(json.dumps(found))


def embedded(demo: Path, work: Path) -> Path:
    """Embeddings by a stage 1 that was trained on what the demo left; made once."""
    where = [f"--features={demo / 'features'}", f"--captions={demo / 'pairs'}"]
    options = [f"--{name}={value}" for name, value in TRAINING.items()]
    viaduct = Path(sys.executable).with_name("viaduct")
    stage1, out = f"{work / 'stage1'}", f"{work / 'embeddings'}"
    for command in (
        ["train-stage1", *where, *options, f"--out={stage1}"],
        ["embed", *where, f"--checkpoint={stage1}", f"--out={out}"],
    ):
        subprocess.run([viaduct, *command], check=True, stdout=sys.stderr)
    return Path(out)


def of_size(
    real: Embedded, size: int, config: IndexConfig, home: Path, curve: str | None
) -> dict[str, Any]:
    """Build an index of so many pictures, and measure it."""
    shutil.rmtree(home, ignore_errors=True)
    try:
        sources = resampled(real, size, config, home, np.random.default_rng(size))
        folder = Folder.at(home / "index")
        begin(folder, sources.lineage)
        begun = time.monotonic()
        build(folder, sources, lambda rows: None)
        build_s = time.monotonic() - begun
        shutil.rmtree(home / "image_embeddings")
        index = RetrievalIndex.open(folder)
        (shard,) = index.manifest.shards
        entry = shard.files[PICTURE_VECTORS]
        per_picture, embed_dim = index.manifest.num_queries, index.manifest.embed_dim
        vectors = np.array(read_vectors(folder, entry, per_picture, embed_dim))
        queries = real.new_captions(RECALL_QUERIES, np.random.default_rng(size + 1))
        between = distances(vectors, queries)
        print(f"resampled: {size:,} pictures, {told(between)}", flush=True)
        measured = compared(index.picture_vectors, BruteForce(vectors), queries)
        if curve and size >= 100_000 and isinstance(index.picture_vectors, ApproximateIndex):
            draw(Path(curve), *points(index.picture_vectors, BruteForce(vectors), queries))
        memory = shard.files[PICTURE_INDEX].bytes if PICTURE_INDEX in shard.files else entry.bytes
        return asdict(measured) | {
            "bytes_per_picture": round(memory / size),
            "stored_bytes_per_picture": round(sum(e.bytes for e in shard.files.values()) / size),
            "build_s": round(build_s, 1),
            "kind": shard.pictures.kind,
            "width": shard.pictures.width and shard.pictures.width.to_json(),
            "gap": round(between["gap"], 4),
        }
    finally:
        shutil.rmtree(home, ignore_errors=True)


def resampled(
    real: Embedded, size: int, config: IndexConfig, home: Path, dice: np.random.Generator
) -> Sources:
    """Datasets of so many pictures with a caption each, on disk, to be indexed as configured."""
    _, per_picture, embed_dim = real.pictures.shape
    schemas = {
        "pairs": PAIRS,
        "image_embeddings": image_embeddings_schema(per_picture, embed_dim),
        "text_embeddings": text_embeddings_schema(embed_dim),
    }
    drafts = {
        kind: Draft.begin(
            Folder.at(home / kind), kind, schema, Lineage("benchmark", {}, (), CHECKPOINT)
        )
        for kind, schema in schemas.items()
    }
    for number, start in enumerate(range(0, size, SHARD_ROWS)):
        rows = range(start, min(start + SHARD_ROWS, size))
        uids = [row.to_bytes(16, "big") for row in rows]
        captions = [[{"text": f"{row}", "source": "web", "status": "kept"}] for row in rows]
        pairs = {"uid": uids, "url": [f"http://example.org/{row}" for row in rows]}
        pairs |= {"captions": captions, "split": ["train"] * len(rows)}
        empty = {name: pa.nulls(len(rows), PAIRS.field(name).type) for name in PAIRS.names}
        pictures, texts = real.new_pictures(len(rows), dice), real.new_captions(len(rows), dice)
        tables = {
            "pairs": pa.table(empty | pairs, schema=PAIRS),
            "image_embeddings": image_rows(uids, pictures, [True] * len(rows)),
            "text_embeddings": text_rows(uids, captions, texts),
        }
        for kind, table in tables.items():
            kept = Account.all_kept(len(rows))
            commit_table(
                drafts[kind].folder,
                number,
                table,
                drafts[kind].rows_per_batch,
                pictures=kept,
                captions=kept if kind == "pairs" else None,
            )
    made = {kind: draft.publish(draft.committed().values()) for kind, draft in drafts.items()}
    return Sources(
        made["pairs"], made["image_embeddings"], made["text_embeddings"], "all", None, config
    )


class BruteForce:
    """All vectors [N, Q, E] against all queries, in float32."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = torch.from_numpy(vectors)

    def scores(self, queries: np.ndarray) -> torch.Tensor:
        """float32[n, N]"""
        asked = torch.from_numpy(queries)
        num, per_picture, embed_dim = self.vectors.shape
        if len(asked) == 1:
            flat = self.vectors.view(-1, embed_dim)
            return torch.mv(flat, asked[0]).view(num, per_picture).amax(1)[None]
        parts = [
            (asked @ block.reshape(-1, embed_dim).T).view(len(asked), -1, per_picture).amax(2)
            for block in self.vectors.split(PICTURES_AT_ONCE)
        ]
        return torch.cat(parts, dim=1)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        return self.scores(queries).topk(TUNED_FOR).indices.numpy()


@dataclass(frozen=True)
class Compared:
    """Queries a second, and what is found."""

    speedup_single: float
    speedup_batch: float
    recall: float
    ours_single_per_s: float
    ours_batch_per_s: float
    brute_single_per_s: float
    brute_batch_per_s: float


def compared(index: Searcher, brute: BruteForce, queries: np.ndarray) -> Compared:
    """Both by turns, first once unmeasured."""
    ours = searching(index)
    recall = recall_of(ours, brute, queries)
    rates: dict[tuple[Search, int], list[float]] = {}
    for turn in range(ROUNDS + 1):
        for search in (brute, ours):
            for size in (1, BATCH):
                rate = per_second(search, queries, size)
                if turn:
                    rates.setdefault((search, size), []).append(rate)
    median = {key: statistics.median(its) for key, its in rates.items()}
    return Compared(
        speedup_single=round(median[ours, 1] / median[brute, 1], 2),
        speedup_batch=round(median[ours, BATCH] / median[brute, BATCH], 2),
        recall=round(recall, 4),
        ours_single_per_s=round(median[ours, 1], 1),
        ours_batch_per_s=round(median[ours, BATCH], 1),
        brute_single_per_s=round(median[brute, 1], 1),
        brute_batch_per_s=round(median[brute, BATCH], 1),
    )


def searching(index: Searcher) -> Search:
    return lambda queries: np.stack(
        [hits.items for hits in index.search(queries[:, None], TUNED_FOR)]
    )


def recall_of(search: Search, brute: BruteForce, queries: np.ndarray) -> float:
    """Share of the brute force's ten; what scores like its tenth is as good."""
    right = []
    for start in range(0, len(queries), BATCH):
        asked = queries[start : start + BATCH]
        scores = brute.scores(asked)
        tenth = scores.topk(TUNED_FOR).values[:, -1:]
        found = scores.gather(1, torch.from_numpy(search(asked)))
        right.append((found >= tenth - 1e-6).float().mean().item())
    return statistics.mean(right)


def per_second(search: Search, queries: np.ndarray, size: int, seconds: float = 1.0) -> float:
    """Queries a second, so many at once, for at least so long."""
    search(queries[:size])
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        start = done % (len(queries) - size + 1)
        search(queries[start : start + size])
        done += size
    return done / (time.monotonic() - begun)


def points(
    index: ApproximateIndex, brute: BruteForce, queries: np.ndarray
) -> tuple[list[tuple[float, float]], float]:
    """Recall and queries a second in batches for several widths, and the brute force's rate."""
    found = []
    for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
        width = Width(
            max(1, int(index.width.probes * factor)), max(10, int(index.width.shortlist * factor))
        )
        search = searching(ApproximateIndex(index.exact, index.proposer, index.per_item, width))
        rate = per_second(search, queries, BATCH)
        found.append((recall_of(search, brute, queries), rate))
        print(
            f"width {width.to_json()}: recall {found[-1][0]:.4f}, {rate:.0f} queries/s", flush=True
        )
    return found, per_second(brute, queries, BATCH)


def draw(path: Path, found: list[tuple[float, float]], brute_per_s: float) -> None:
    """Recall against queries a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*found, strict=True), marker="o", label="viaduct index --kind auto")
    axes.axhline(brute_per_s, linestyle="--", color="grey", label="torch, every vector")
    axes.set(xlabel="recall of the ten best", ylabel="queries a second, 64 at once", yscale="log")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def told(between: dict[str, float]) -> str:
    return (
        f"median cosine of a picture's vector to the closest of another {between['picture']:.4f}, "
        f"of a caption to the closest {between['caption']:.4f}, gap {between['gap']:.4f}"
    )


if __name__ == "__main__":
    main()
