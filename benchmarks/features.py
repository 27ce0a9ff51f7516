"""Times `viaduct features` beside its bare encoder on ready batches.

    python benchmarks/features.py [--pairs FOLDER] [--pictures N] [--rounds N] [--encoder NAME ...]

Both sides run on the same pool of Ray actors: two workers, each with the default of one encoder
thread and batches of 32, on a CPU. A worker of either side loads the encoder, encodes one picture,
and waits for the other worker; the clock starts when both are ready and stops when the last shard
is done. So the start of processes and the loading of weights stay out on both sides, and all else
is in.

job     what `viaduct features` runs: verifying, reading and decoding pictures, cropping, the
        encoder, fp16, digests, writing and committing shards.
bare    the encoder alone, on batches of floats that are ready in memory; nothing is kept of it.

Rounds alternate between the two, and the ratio is that of the medians. The pictures are those of
`--pairs`, a dataset of kind pairs, cut anew into four even shards; without it they are drawn, 256
pixels high or wide as curate leaves them. vit_base_patch16_224 has random weights. The last line is
one JSON object: pictures a second of the job over those of the bare encoder.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageFilter

from jobs.cluster import ClusterConfig, session
from jobs.feature_worker import SHARDS_AT_ONCE, CacheConfig, FeatureWork, FeatureWorker
from jobs.shards import PoolConfig, Task, run_shards
from model.pretrained.augmentation import ViewsConfig
from model.pretrained.encoders import EncoderConfig, load_encoder
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.schemas import PAIRS
from pipeline.shard import FileEntry, ShardRecord, commit_table
from pipeline.storage import Folder

WORKERS, SHARDS = 2, 4
ENCODERS = {
    "vit_base": EncoderConfig(encoder="timm:vit_base_patch16_224", weights="random"),
    "efficientnet": EncoderConfig(encoder="offline:efficientnet_lite0"),
}
CACHE = CacheConfig()
Work = Callable[[Task], ShardRecord]


def drawn(number: int) -> bytes:
    """A photo's worth of colours and edges as a JPEG of curate's size and quality."""
    dice = np.random.default_rng(number)
    rough = Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(rough.resize((341, 256), Image.Resampling.BICUBIC), np.int16)
    grain = dice.normal(0, 12, (256, 341, 1)).astype(np.int16)
    picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.filter(ImageFilter.SMOOTH).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def jpegs_of(folder: str | None, count: int) -> list[bytes]:
    """So many stored pictures; those of a dataset come again from its start if it has too few."""
    if folder is None:
        return [drawn(number) for number in range(count)]
    found: list[bytes] = []
    for shard in Dataset.open(folder, "pairs").shards():
        found += shard.table.column("picture").slice(0, count - len(found)).to_pylist()
    return [found[number % len(found)] for number in range(count)]


def make_pairs(home: Path, jpegs: list[bytes]) -> Dataset:
    """`pairs` of these pictures in even shards."""
    draft = Draft.begin(Folder.at(home), "pairs", PAIRS, Lineage("benchmark", {}))
    for number, numbers in enumerate(np.array_split(np.arange(len(jpegs)), SHARDS)):
        rows = [
            {
                "uid": int(n).to_bytes(16, "big"),
                "picture": jpegs[n],
                "captions": [],
                "split": "train",
            }
            for n in numbers
        ]
        kept = Account.all_kept(len(rows))
        table = pa.Table.from_pylist(rows, PAIRS)
        commit_table(
            draft.folder,
            number,
            table,
            draft.rows_per_batch,
            pictures=kept,
            captions=Account.all_kept(0),
        )
    return draft.publish(draft.committed().values())


def when_all_are_ready(home: Path, make: Callable[[], Work]) -> Work:
    """A worker that waits for the others; `home` has a file of each with the time."""
    work = make()
    (home / f"ready-{time.time_ns()}").touch()
    while len(list(home.glob("ready-*"))) < WORKERS:
        time.sleep(0.005)
    return work


def make_bare(config: EncoderConfig) -> Work:
    torch.set_num_threads(CACHE.threads)
    encoder = load_encoder(config)
    batch = torch.rand(CACHE.batch_size, *encoder.spec.transform["input_size"])
    encoder(batch[:1])

    def work(task: Task) -> ShardRecord:
        for start in range(0, task.rows, CACHE.batch_size):
            encoder(batch[: task.rows - start])
        entry = FileEntry(f"{task.number:05d}.arrow", task.rows, 1, "0" * 64)
        return ShardRecord(task.number, entry, "0" * 64, Account.all_kept(task.rows))

    return work


def pictures_per_s(make: Callable[[], Work], tasks: list[Task], at_once: int) -> float:
    """From the moment at which all workers are ready to the last shard's end."""
    with tempfile.TemporaryDirectory() as home:
        pool = PoolConfig(workers=WORKERS)
        ready = partial(when_all_are_ready, Path(home), make)
        outcome = run_shards(ready, tasks, pool, at_once=at_once)
        ended = time.time_ns()
        if len(outcome.done) != len(tasks):
            raise SystemExit(f"shards failed: {outcome.set_aside}")
        begun = max(int(path.name.removeprefix("ready-")) for path in Path(home).iterdir())
    return sum(task.rows for task in tasks) / (ended - begun) * 1e9


def measure(name: str, pairs: Dataset, rounds: int) -> float:
    """Pictures a second of the job over those of the bare encoder."""
    config = ENCODERS[name]
    spec = load_encoder(config).spec
    tasks = [Task(record.number, record.entry.rows) for record in pairs.manifest.records]
    rates: dict[str, list[float]] = {"bare": [], "job": []}
    for number in range(rounds):
        rates["bare"].append(pictures_per_s(partial(make_bare, config), tasks, 1))
        with tempfile.TemporaryDirectory() as out:
            work = FeatureWork(
                pairs, Folder.at(out), config, spec, CACHE, "cpu", ViewsConfig(), view=0
            )
            rates["job"].append(pictures_per_s(partial(FeatureWorker, work), tasks, SHARDS_AT_ONCE))
        told = ", ".join(f"{side} {its[-1]:.2f}" for side, its in rates.items())
        print(f"{name} round {number + 1}: {told} pictures/s", flush=True)
    medians = {side: statistics.median(its) for side, its in rates.items()}
    return medians["job"] / medians["bare"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", help="dataset whose pictures are taken")
    parser.add_argument("--pictures", type=int, default=384, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, session(ClusterConfig()):
        pairs = make_pairs(Path(home), jpegs_of(arguments.pairs, arguments.pictures))
        found = {name: measure(name, pairs, arguments.rounds) for name in arguments.encoder}
    print(json.dumps({name: round(ratio, 3) for name, ratio in found.items()}))


if __name__ == "__main__":
    main()
