"""`viaduct evaluate` on a set of COCO's size: 5,000 pictures, 25,000 captions, ITM on the best 16.

    python benchmarks/evaluate.py [--pictures 5000] [--rerank 16]

The set is made up: image tokens of an EfficientNet's shape (49 x 1280) and captions of COCO's
length, both by chance. So are the weights of the Q-Former, 2 layers of 64 with BLIP-2's 32 query
outputs of 256 values: what is measured is time and memory, and its recall is that of chance. They
are embedded first, which is not timed. Then the command runs as a user runs it, Ray's start
included, without the control and without a look for leaks. The resident memory of each process is
sampled four times a second; what several processes share is counted in each.

The last line is one JSON object: wall_s; of it rank_s, by ITC, and rerank_s, by ITM, each with the
start of its workers; cpu_s of all processes, Ray's own included, which other work on the machine
changes less; num_pairs that ITM saw; peak_mb, the largest sum over all processes but Ray's own;
worker_mb, the largest worker.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch

from model.checkpoint import Checkpoint, save_tensors, write_checkpoint
from model.pretrained.encoder_spec import EncoderSpec
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.vocabulary import learned_tokenizer
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.schemas import PAIRS, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder

TOKENS, WIDTH = 49, 1280
CAPTIONS_A_PICTURE = 5
SHARD_ROWS = 1024
WORDS = 600
ENCODER = EncoderSpec("made up", "random", "0" * 64, -1, TOKENS, WIDTH, {}).to_json()


def captions_of(dice: np.random.Generator, words: list[str]) -> list[str]:
    """Five captions of eight to fourteen words, frequent ones more often."""
    lengths = dice.integers(8, 15, CAPTIONS_A_PICTURE)
    return [
        " ".join(words[at] for at in (WORDS * dice.random(length) ** 2).astype(int))
        for length in lengths
    ]


def make_data(home: Path, num_pictures: int) -> list[str]:
    """`pairs` and `features`; returns some captions."""
    dice = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(dice.choice(letters, dice.integers(2, 8))) for _ in range(WORDS)]
    encoder = {"encoder": ENCODER}
    pairs = Draft.begin(Folder.at(home / "pairs"), "pairs", PAIRS, Lineage("benchmark", {}))
    schema = features_schema(TOKENS, WIDTH, "fp16")
    lineage = Lineage("benchmark", {}, (), encoder)
    features = Draft.begin(Folder.at(home / "features"), "features", schema, lineage)
    told: list[str] = []
    for number, start in enumerate(range(0, num_pictures, SHARD_ROWS)):
        rows = range(start, min(start + SHARD_ROWS, num_pictures))
        uids = [row.to_bytes(16, "big") for row in rows]
        texts = [captions_of(dice, words) for _ in rows]
        told += texts[0]
        kept = {"source": "web", "status": "kept"}
        table = pa.Table.from_pylist(
            [
                {
                    "uid": uid,
                    "picture": b"",
                    "captions": [{"text": text, **kept} for text in its],
                    "split": "test",
                }
                for uid, its in zip(uids, texts, strict=True)
            ],
            PAIRS,
        )
        commit(pairs, number, table, captions=CAPTIONS_A_PICTURE * len(rows))
        tokens = dice.standard_normal((len(rows), TOKENS, WIDTH), np.float32)
        columns = token_columns(tokens, [True] * len(rows), uids, "fp16")
        commit(features, number, pa.table({"uid": uids, **columns}, schema=schema))
    for draft in (pairs, features):
        draft.publish(draft.committed().values())
    return told


def commit(draft: Draft, number: int, table: pa.Table, captions: int | None = None) -> None:
    everything = Account.all_kept(table.num_rows)
    told = None if captions is None else Account.all_kept(captions)
    commit_table(
        draft.folder, number, table, draft.rows_per_batch, pictures=everything, captions=told
    )


def make_checkpoint(home: Path, captions: list[str]) -> None:
    tokenizer = learned_tokenizer(captions, 2000)
    config = QFormerConfig(
        vision_width=WIDTH,
        vocab_size=len(tokenizer),
        width=64,
        num_layers=2,
        num_heads=4,
        feed_forward_width=256,
    )
    torch.manual_seed(0)
    stage1 = Stage1(config, tokenizer).eval()
    lineage = Lineage("benchmark", {}, (), {"encoder": ENCODER})
    checkpoint = Checkpoint(Folder.at(home), 1, 0, asdict(config), lineage, {})
    contents = {"weights": save_tensors(stage1.state_dict())}
    write_checkpoint(checkpoint, contents | {"tokenizer": tokenizer.to_json().encode()})


class Watch:
    """Samples the memory of a command's processes until it ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.peak_mb = self.worker_mb = 0.0
        self._cpu_s: dict[int, float] = {}
        self._process = process
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """Of all processes that were seen, as last seen."""
        return sum(self._cpu_s.values())

    def _run(self) -> None:
        job = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            found = list(self._resident_mb(job))
            self.peak_mb = max(self.peak_mb, sum(mb for _, mb in found))
            workers = [mb for is_worker, mb in found if is_worker]
            self.worker_mb = max([self.worker_mb, *workers])
            time.sleep(0.25)

    def _resident_mb(self, job: psutil.Process) -> Iterator[tuple[bool, float]]:
        """Of the command and its workers: whether it is a worker, and its megabytes."""
        try:
            below = job.children(recursive=True)
        except psutil.Error:
            return
        for process in [job, *below]:
            try:
                is_worker = "ray::Worker" in " ".join(process.cmdline())
                if is_worker or process == job:
                    yield is_worker, process.memory_info().rss / 1e6
                times = process.cpu_times()
                self._cpu_s[process.pid] = times.user + times.system
            except psutil.Error:  # it has just ended
                continue


def seconds_of(phase: str, lines: list[str], begun: datetime) -> float:
    """From the end of the phase before, or the begin, to the last line of a phase's progress."""
    ends = [(line, stamp(line)) for line in lines if " progress job=" in line]
    mine = [at for line, at in ends if f" job={phase} " in line]
    before = [at for line, at in ends if at < mine[0] and f" job={phase} " not in line]
    return (mine[-1] - max(before, default=begun)).total_seconds()


def stamp(line: str) -> datetime:
    found = re.match(r"\d+-\d+-\d+ \d+:\d+:\d+,\d+", line)
    if found is None:
        raise SystemExit(f"a line of log without time: {line}")
    return datetime.strptime(found[0], "%Y-%m-%d %H:%M:%S,%f")


def viaduct(*words: object) -> list[str]:
    program = [sys.executable, "-m", "jobs.cli"]
    return [*program, *map(str, words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rerank", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_checkpoint(home / "stage1", make_data(home, arguments.pictures))
        made_of = (
            *("--checkpoint", home / "stage1", "--features", home / "features"),
            *("--captions", home / "pairs"),
        )
        subprocess.run(viaduct("embed", *made_of, "--out", home / "embeddings"), check=True)
        num = Dataset.open(str(home / "pairs")).num_rows
        command = viaduct("evaluate", home / "embeddings", *made_of, "--rerank", arguments.rerank)
        command += ["--control", "none", "--json"]
        begun, clock = datetime.now(), time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        watch = Watch(process)
        out, log = process.communicate()
        wall_s = time.monotonic() - clock
        watch.end()
        print(log, file=sys.stderr)
        if process.returncode:
            raise SystemExit(process.returncode)
    result = json.loads(out)
    if (result["num_pictures"], result["num_captions"]) != (num, CAPTIONS_A_PICTURE * num):
        raise SystemExit("pictures or captions were lost")
    lines = log.splitlines()
    found = {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(watch.cpu_s, 1),
        "rank_s": round(seconds_of("rank", lines, begun), 1),
        "rerank_s": round(seconds_of("rerank", lines, begun), 1),
        "num_pairs": result["rerank"]["num_pairs"],
        "peak_mb": round(watch.peak_mb),
        "worker_mb": round(watch.worker_mb),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
