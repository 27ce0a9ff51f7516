"""A training that is killed at random moments beside one that is not: do they end alike?

    python benchmarks/killed_training.py [--features F --captions PAIRS] [--kills 3] [--ranks 1]

Trains stage 1 on real features (by default what benchmarks/real_data.py makes of stamps and
clipart) once without a disturbance, and once with SIGKILLs of the command and all its processes, as
at a power cut, at moments drawn over the time that the first one took; after each the same command
goes on. Both must have the same checkpoint, bit for bit, and the same lines of metrics but for
times. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from model.checkpoint import Checkpoint

OPTIONS = {
    "start": "offline:minilm",
    "num-queries": 8,
    "batch-size": 32,
    "steps": 80,
    "learning-rate": 3e-4,
    "warmup-steps": 10,
    "log-every": 2,
    "validate-every": 20,
    "checkpoint-every": 10,
    "validation-pictures": 64,
    "device": "cpu",
}
TIMES = ("step_s", "pairs_per_s", "data_wait_s", "time_left_s")


def train(command: list[str], kill_after_s: float | None = None) -> bool:
    """Run it to its end, or kill it with all that it started; whether it ended."""
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if job.wait(timeout=kill_after_s) != 0:
            sys.exit(f"failed: {' '.join(command)}")
        return True
    except subprocess.TimeoutExpired:
        below = psutil.Process(job.pid).children(recursive=True)
        for process in [psutil.Process(job.pid), *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        job.wait()
        psutil.wait_procs(below, timeout=30)
        return False


def told(folder: Path) -> list[dict[str, Any]]:
    """Its lines of metrics without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: v for name, v in line.items() if name not in TIMES} for line in lines]


def last_step(folder: Path) -> int:
    """The last step that it has told."""
    file = folder / "metrics.jsonl"
    steps = [0, *(line["step"] for line in told(folder))] if file.exists() else [0]
    return steps[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="runs/real-data/web/features-cnn")
    parser.add_argument("--captions", default="runs/real-data/web/pairs")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=OPTIONS["steps"])
    parser.add_argument("--batch-size", type=int, default=OPTIONS["batch-size"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    words = [Path(sys.executable).with_name("viaduct"), "train-stage1"]
    given = ("features", "captions", "ranks", "threads", "steps")
    options = OPTIONS | {name: getattr(arguments, name) for name in given}
    options["batch-size"] = arguments.batch_size
    for name, value in options.items():
        words += [f"--{name}", value]

    with tempfile.TemporaryDirectory(prefix="viaduct-") as scratch:
        unbroken, killed = Path(scratch, "unbroken"), Path(scratch, "killed")
        begun = time.monotonic()
        train([*map(str, words), "--out", str(unbroken)])
        took_s = time.monotonic() - begun
        draw = random.Random(arguments.seed)
        killed_at: list[int] = []
        while len(killed_at) < arguments.kills:
            after_s = draw.uniform(0.1, 0.9) * took_s
            if train([*map(str, words), "--out", str(killed)], after_s):
                shutil.rmtree(killed)  # it was done before: once more
                killed_at.clear()
                continue
            killed_at.append(last_step(killed))
            print(f"killed after {after_s:.1f} s, when step {killed_at[-1]} was told")
        train([*map(str, words), "--out", str(killed)])
        digests = [Checkpoint.open(str(folder)).digest for folder in (unbroken, killed)]
        found = {
            "steps": options["steps"],
            "ranks": arguments.ranks,
            "killed_at": killed_at,
            "same_checkpoint": digests[0] == digests[1],
            "same_metrics": told(unbroken) == told(killed),
            "digest": digests[0],
        }
    print(json.dumps(found))
    if not (found["same_checkpoint"] and found["same_metrics"]):
        sys.exit("the two trainings differ")


if __name__ == "__main__":
    main()
