"""Times the captioning of `viaduct capfilt` beside its bare generation on tokens in memory.

    python benchmarks/capfilt_speed.py [--size small|base] [--shards N]

Two workers of one thread each, on the pool of Ray actors that runs the job, caption shard after
shard, each of them in three ways by turns, so that a busy machine slows all three alike. They write
ten nucleus captions a picture (p = 0.9) in batches of 16 pictures. Seconds are taken in the worker:
its start, the loading of weights and a first picture stay out.

bare    `write_captions` on tokens that are ready in memory; nothing is kept of it.
job     what `viaduct capfilt` runs but its judging: verifying and reading features and captions,
        writing, cleaning, digests, committing the shard.
judged  the same with a judge: another stage 1 of the same size scores all texts.

The models have random weights but a head as sure of itself as a trained one: captions end after
eleven tokens on average, and the nucleus is a part of the vocabulary. `small` is a Q-Former of 3
layers of 128 with 16 queries and a vocabulary of 2,000 on 49 x 320 tokens, where what is no
generation shows most; `base` is of BERT-base size on 257 x 1408. The last line is one JSON object:
captions a second of the job, without and with its judge, over those of bare generation, each the
median over the shards.
"""

import argparse
import itertools
import json
import math
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import BertWordPieceTokenizer

from jobs.caption_worker import CaptionWork, CaptionWorker
from jobs.cluster import ClusterConfig, session
from jobs.compute import ComputeConfig
from jobs.shards import Made, PoolConfig, Task, run_shards
from model.checkpoint import Checkpoint, save_tensors, write_checkpoint
from model.checkpoint_models import load_stage1
from model.generation.settings import GenerationConfig
from model.generation.stage1 import write_captions
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.tokenizer import CaptionTokenizer
from pipeline.accounting import Account
from pipeline.candidates import filters_of_written
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.order import writing_seeds
from pipeline.schemas import PAIRS, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder

WORKERS = 2
COMPUTE = ComputeConfig(batch_size=16)
GENERATION = GenerationConfig(method="nucleus", num_captions=10, min_tokens=2)
MEAN_TOKENS = 11
"""Of a caption; its end comes with this probability at each place."""


@dataclass(frozen=True)
class Size:
    """Of a benchmark."""

    qformer: QFormerConfig
    num_tokens: int
    """P"""
    pictures: int
    """Of a shard."""


SIZES = {
    "small": Size(
        QFormerConfig(
            vision_width=320,
            vocab_size=2_000,
            width=128,
            num_layers=3,
            num_heads=4,
            feed_forward_width=512,
            num_queries=16,
            embed_dim=64,
        ),
        49,
        64,
    ),
    "base": Size(QFormerConfig(vision_width=1408), 257, 16),
}


def random_stage1(config: QFormerConfig, seed: int) -> Stage1:
    """With a vocabulary of made-up words of letters, and a head that is sure of itself."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    made_up = ("".join(word) for word in letters)
    words = [*special, *itertools.islice(made_up, config.vocab_size - 1 - len(special))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CaptionTokenizer.from_json(BertWordPieceTokenizer(vocab=vocabulary).to_str())
    torch.manual_seed(seed)
    stage1 = Stage1(config, tokenizer).eval()
    head = stage1.qformer.head
    assert head is not None
    with torch.no_grad():
        head.bias.normal_(0, 2.5)
        head.bias[tokenizer.unwritten] = -math.inf
        head.bias[tokenizer.sep] = -math.inf
        head.bias[tokenizer.sep] = head.bias.logsumexp(0) - math.log(MEAN_TOKENS - 1)
    return stage1


def save(home: Path, stage1: Stage1) -> Checkpoint:
    """As a checkpoint."""
    lineage = Lineage("benchmark", {})
    made = Checkpoint(Folder.at(home), 1, 0, asdict(stage1.config), lineage, {})
    tokenizer = stage1.tokenizer.to_json().encode()
    return write_checkpoint(
        made, {"weights": save_tensors(stage1.state_dict()), "tokenizer": tokenizer}
    )


def noise(size: Size, shard: int) -> np.ndarray:
    """Tokens of a shard's pictures, float16[N, P, C]."""
    shape = (size.pictures, size.num_tokens, size.qformer.vision_width)
    return np.random.default_rng(shard).standard_normal(shape, np.float32).astype(np.float16)


def uids_of(size: Size, shard: int) -> list[bytes]:
    return [(shard * size.pictures + row).to_bytes(16, "big") for row in range(size.pictures)]


def make_data(home: Path, size: Size, num_shards: int) -> tuple[Dataset, Dataset]:
    """Features of noise, and `pairs` with a caption each."""
    schema = features_schema(size.num_tokens, size.qformer.vision_width, "fp16")
    features = Draft.begin(Folder.at(home / "features"), "features", schema, Lineage("noise", {}))
    pairs = Draft.begin(Folder.at(home / "pairs"), "pairs", PAIRS, Lineage("noise", {}))
    kept = Account.all_kept(size.pictures)
    for shard in range(num_shards):
        uids, tokens = uids_of(size, shard), noise(size, shard).astype(np.float32)
        columns = token_columns(tokens, [True] * size.pictures, uids, "fp16")
        caption = {"text": "aaaa aaab aaac aaad aaae", "source": "web", "status": "kept"}
        told = [{"uid": uid, "captions": [caption], "split": "train"} for uid in uids]
        for draft, table in (
            (features, pa.table({"uid": uids, **columns}, schema=schema)),
            (pairs, pa.Table.from_pylist(told, PAIRS)),
        ):
            captions = kept if draft is pairs else None
            commit_table(
                draft.folder, shard, table, draft.rows_per_batch, pictures=kept, captions=captions
            )
    return (
        features.publish(features.committed().values()),
        pairs.publish(pairs.committed().values()),
    )


class ThreeWays:
    """Captions each shard in each way, by turns, and tells the seconds.

    Args:
        size: see there.
        works: of the job, without and with a judge.
    """

    def __init__(self, size: Size, works: dict[str, CaptionWork]) -> None:
        self._size = size
        captioner = next(iter(works.values())).captioner
        if captioner is None:
            raise ValueError("nobody writes")
        self._workers = {name: CaptionWorker(work) for name, work in works.items()}
        self._bare = load_stage1(captioner)
        with tempfile.TemporaryDirectory() as aside:
            for work in works.values():
                CaptionWorker(replace(work, out=Folder.at(aside), quota={0: 1}))(Task(0, 0))
                Path(aside, "00000.json").unlink()
        self._tokens = torch.empty(0)

    def __call__(self, task: Task) -> Made:
        self._tokens = torch.from_numpy(noise(self._size, task.number))
        ways: list[tuple[str, Callable[[Task], Made | None]]] = [
            ("bare", self._captioned),
            *self._workers.items(),
        ]
        first = task.number % len(ways)
        seconds, made = {}, None
        for name, way in ways[first:] + ways[:first]:
            begun = time.perf_counter()
            made = way(task) or made
            seconds[f"{name} {task.number}"] = time.perf_counter() - begun
        assert made is not None
        return Made(made.record, seconds)

    def _captioned(self, task: Task) -> None:
        """Nothing but `write_captions`, with the draws of the job."""
        uids = uids_of(self._size, task.number)
        for start in range(0, len(uids), COMPUTE.batch_size):
            some = slice(start, start + COMPUTE.batch_size)
            seeds = writing_seeds(GENERATION.seed, uids[some])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            write_captions(self._bare, self._tokens[some], GENERATION, generators)


def measure(home: Path, size: Size, num_shards: int) -> dict[str, list[float]]:
    """Seconds that each shard took, each way."""
    features, pairs = make_data(home, size, num_shards)
    captioner, judge = (
        save(home / name, random_stage1(size.qformer, seed))
        for seed, name in enumerate(("captioner", "judge"))
    )
    works = {}
    for name, judges in (("job", ()), ("judged", (judge,))):
        (home / name).mkdir()
        works[name] = CaptionWork(
            features=features,
            pairs=pairs,
            captions=pairs,
            out=Folder.at(home / name),
            captioner=captioner,
            judges=judges,
            generation=GENERATION,
            filters=filters_of_written("default"),
            split="train",
            quota=None,
            compute=COMPUTE,
            device="cpu",
        )
    tasks = [Task(number, size.pictures) for number in range(num_shards)]
    outcome = run_shards(partial(ThreeWays, size, works), tasks, PoolConfig(workers=WORKERS))
    if outcome.set_aside:
        raise SystemExit(f"shards failed: {outcome.set_aside}")
    return {
        name: [outcome.sums[f"{name} {number}"] for number in range(num_shards)]
        for name in ("bare", *works)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--shards", type=int, default=24)
    options = parser.parse_args()
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as home, session(ClusterConfig()):
        seconds = measure(Path(home), size, options.shards)
    captions = size.pictures * GENERATION.num_captions
    for name, its in seconds.items():
        print(f"{name:8}{captions / statistics.median(its):8.1f} captions/s in each worker")
    ratios = {
        name: statistics.median(b / s for b, s in zip(seconds["bare"], its, strict=True))
        for name, its in seconds.items()
    }
    told = {"ratio": round(ratios["job"], 3), "with_judging": round(ratios["judged"], 3)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
