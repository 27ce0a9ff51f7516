"""Times the captioning of `viaduct capfilt` beside its bare generation on tokens in memory.

    python benchmarks/capfilt_speed.py [--size small|base] [--pictures N] [--rounds N]

All sides run on the same pool of Ray actors: two workers of one thread each, batches of 16
pictures, ten nucleus captions a picture (p = 0.9). A worker loads its models, captions one picture
and waits for the other worker; the clock starts when both are ready and stops when the last shard
is done. So the start of processes and the loading of weights stay out on all sides, and all else is
in.

bare    `write_captions` on tokens that are ready in memory; nothing is kept of it.
job     what `viaduct capfilt` runs but its judging: verifying and reading features and captions,
        writing, cleaning, digests, committing shards.
judged  the same with a judge: another stage 1 of the same size scores all texts.

Rounds alternate between the three, and the ratios are those of the medians. The models have random
weights but a head as sure of itself as a trained one: captions end after eleven tokens on average,
and the nucleus is a part of the vocabulary. `small` is a Q-Former of 3 layers of 128 with 16
queries and a vocabulary of 2,000 on 49 x 320 tokens, where what is no generation shows most; `base`
is of BERT-base size on 257 x 1408. The last line is one JSON object: captions a second of the job,
without and with its judge, over those of bare generation.
"""

import argparse
import itertools
import json
import math
import statistics
import string
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from features import Work, pictures_per_s
from tokenizers import BertWordPieceTokenizer

from jobs.caption_worker import CaptionWork, CaptionWorker, ComputeConfig
from jobs.cluster import ClusterConfig, session
from jobs.shards import Task
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
from pipeline.shard import FileEntry, ShardRecord, commit_table
from pipeline.storage import Folder

SHARDS = 4
COMPUTE = ComputeConfig()
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
    """Of a round."""


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
        1024,
    ),
    "base": Size(QFormerConfig(vision_width=1408), 257, 32),
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


def noise(size: Size, shard: int, num: int) -> np.ndarray:
    """Tokens of a shard's pictures, float16[N, P, C]."""
    shape = (num, size.num_tokens, size.qformer.vision_width)
    return np.random.default_rng(shard).standard_normal(shape, np.float32).astype(np.float16)


def make_data(home: Path, size: Size, num_pictures: int) -> tuple[Dataset, Dataset]:
    """Features of noise, and `pairs` with a caption each, in even shards."""
    schema = features_schema(size.num_tokens, size.qformer.vision_width, "fp16")
    features = Draft.begin(Folder.at(home / "features"), "features", schema, Lineage("noise", {}))
    pairs = Draft.begin(Folder.at(home / "pairs"), "pairs", PAIRS, Lineage("noise", {}))
    num = num_pictures // SHARDS
    kept = Account.all_kept(num)
    for shard in range(SHARDS):
        uids = [(shard * num + row).to_bytes(16, "big") for row in range(num)]
        tokens = noise(size, shard, num).astype(np.float32)
        columns = token_columns(tokens, [True] * num, uids, "fp16")
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


def make_job(work: CaptionWork, out: Path) -> CaptionWorker:
    """The job's worker, once it has captioned a picture."""
    with tempfile.TemporaryDirectory() as aside:
        CaptionWorker(replace(work, out=Folder.at(aside), quota={0: 1}))(Task(0, 0))
    return CaptionWorker(replace(work, out=Folder.at(out)))


def make_bare(
    size: Size, captioner: Checkpoint, num_pictures: int
) -> Callable[[Task], ShardRecord]:
    """Nothing but `write_captions`, with the draws of the job; it has captioned a picture."""
    torch.set_num_threads(COMPUTE.threads)
    stage1 = load_stage1(captioner)
    num = num_pictures // SHARDS
    tokens = [torch.from_numpy(noise(size, shard, num)) for shard in range(SHARDS)]

    def caption(shard: int, rows: slice) -> None:
        uids = [(shard * num + row).to_bytes(16, "big") for row in range(num)[rows]]
        seeds = writing_seeds(GENERATION.seed, uids)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        write_captions(stage1, tokens[shard][rows], GENERATION, generators)

    caption(0, slice(0, 1))

    def work(task: Task) -> ShardRecord:
        for start in range(0, num, COMPUTE.batch_size):
            caption(task.number, slice(start, start + COMPUTE.batch_size))
        entry = FileEntry(f"{task.number:05d}.arrow", task.rows, 1, "0" * 64)
        return ShardRecord(task.number, entry, "0" * 64, Account.all_kept(task.rows))

    return work


def measure(home: Path, size: Size, num_pictures: int, rounds: int) -> dict[str, float]:
    """Captions a second of each side: medians."""
    features, pairs = make_data(home, size, num_pictures)
    captioner, judge = (
        save(home / name, random_stage1(size.qformer, seed))
        for seed, name in enumerate(("captioner", "judge"))
    )
    job = CaptionWork(
        features=features,
        pairs=pairs,
        captions=pairs,
        out=features.folder,  # each worker has another one
        captioner=captioner,
        judges=(),
        generation=GENERATION,
        filters=filters_of_written("default"),
        split="train",
        quota=None,
        compute=COMPUTE,
        device="cpu",
    )
    judged = replace(job, judges=(judge,))
    tasks = [Task(record.number, record.entry.rows) for record in pairs.manifest.records]
    rates: dict[str, list[float]] = {"bare": [], "job": [], "judged": []}
    for number in range(rounds):
        outs = {name: home / f"{name}-{number}" for name in ("job", "judged")}
        for out in outs.values():
            out.mkdir()
        sides: dict[str, Callable[[], Work]] = {
            "bare": partial(make_bare, size, captioner, num_pictures),
            "job": partial(make_job, job, outs["job"]),
            "judged": partial(make_job, judged, outs["judged"]),
        }
        for name, make in sides.items():
            rate = pictures_per_s(make, tasks, 1) * GENERATION.num_captions
            rates[name].append(rate)
        told = ", ".join(f"{name} {its[-1]:.1f}" for name, its in rates.items())
        print(f"round {number + 1}: {told} captions/s", flush=True)
    return {name: statistics.median(its) for name, its in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pictures", type=int, help="of each round; a multiple of four")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = SIZES[options.size]
    num_pictures = options.pictures or size.pictures
    with tempfile.TemporaryDirectory() as home, session(ClusterConfig()):
        rates = measure(Path(home), size, num_pictures, options.rounds)
    told = {
        "ratio": round(rates["job"] / rates["bare"], 3),
        "with_judging": round(rates["judged"] / rates["bare"], 3),
        **{f"{name}_captions_per_s": round(rate, 1) for name, rate in rates.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
