"""What a shard costs beside its pictures, what a second worker gains, and what a thousand would do.

    python benchmarks/scaling.py [--work DIR] [--plot FILE.svg]

Measured on this machine: shards with nothing to do, by 1, 2 and 16 workers, from the first handed
back to the last; and `viaduct ingest` of a folder of pictures of 0.5 megapixels, by one worker and
by two of one thread each, from the first committed shard to the last.

Simulated from that, for 1 to 1,000 workers and 129 million pairs (LAION's and CC's, as BLIP-2 has
them): a worker makes a shard in the time that one took here, drawn from those measured; the store
takes its bytes and its requests, one after another at the rates given by --store-gb-per-s and
--store-requests-per-s (by default what Amazon documents for one prefix of S3; not measured); the
driver takes its result, one after another, and hands out the next. Nothing else is in the model: no
network between machines, no slow hosts, no deaths. It is checked against the runs of 1 and 2
workers, with the disk's bytes for free, and fails where it is off by more than 15%.

The last line is one JSON object: `noop_shards_per_s` by two workers, `speedup_two_workers`,
`overhead_s` of a shard, the model's errors, and what 1,000 workers would do.
"""

import argparse
import heapq
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.cluster import ClusterConfig, session
from jobs.shards import PoolConfig, Task, run_shards

NUM_NOOP_SHARDS = {1: 4000, 2: 10_000, 16: 10_000}
NUM_SHARDS, SHARD_ROWS, FEW_ROWS = 48, 128, 4
PICTURE_PX = (816, 612)
NUM_DRAWN = 32
PAIRS, PAIRS_A_SHARD = 129_000_000, 1000
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 700, 1000)
LARGEST_ERROR = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/scaling-benchmark"))
    parser.add_argument("--plot", type=Path, help="SVG file of pairs a second against workers")
    parser.add_argument("--store-gb-per-s", type=float, default=12.5)
    parser.add_argument("--store-requests-per-s", type=float, default=3500)
    arguments = parser.parse_args()
    noop = {workers: noop_rate(workers, number) for workers, number in NUM_NOOP_SHARDS.items()}
    print("no-op shards a second by workers: " + told(noop), flush=True)
    shutil.rmtree(arguments.work, ignore_errors=True)
    try:
        runs = {n: ingested(arguments.work, n, SHARD_ROWS) for n in (1, 2)}
        few = ingested(arguments.work, 1, FEW_ROWS)
    finally:
        shutil.rmtree(arguments.work, ignore_errors=True)
    rates = {workers: run.shards_per_s for workers, run in runs.items()}
    print(f"shards of {SHARD_ROWS} pictures a second by workers: " + told(rates), flush=True)

    # A shard of few pictures and one of many tell a shard's own seconds from a picture's.
    a_picture = (1 / rates[1] - 1 / few.shards_per_s) / (SHARD_ROWS - FEW_ROWS)
    overhead_s = max(0.0, 1 / few.shards_per_s - FEW_ROWS * a_picture)
    driver = Driver(service_s=1 / noop[16], delay_s=max(0.0, 1 / noop[1] - 1 / noop[16]))
    spread = runs[1].seconds / runs[1].seconds.mean()
    here = Model(driver, Store(0.0), spread * (1 / rates[1] - 1 / noop[1]))
    errors = {n: simulated(here, n, NUM_SHARDS) / rates[n] - 1 for n in rates}
    print("the model against these runs: " + told(errors, "+.1%"))

    made = runs[1]
    store_s = max(
        made.bytes_a_picture * PAIRS_A_SHARD / (arguments.store_gb_per_s * 1e9),
        made.files_a_shard / arguments.store_requests_per_s,
    )
    shard_s = overhead_s + PAIRS_A_SHARD * a_picture
    there = Model(driver, Store(store_s), spread * shard_s)
    found = {n: simulated(there, n, PAIRS // PAIRS_A_SHARD) * PAIRS_A_SHARD for n in WORKERS}
    limits = {
        "driver": PAIRS_A_SHARD / driver.service_s,
        "object store, bytes": arguments.store_gb_per_s * 1e9 / made.bytes_a_picture,
        "object store, requests": (
            PAIRS_A_SHARD * arguments.store_requests_per_s / made.files_a_shard
        ),
    }
    print("\n| workers | pairs a second | of so many times one worker's | 129 M pairs take |")
    print("|---|---|---|---|")
    for workers, rate in found.items():
        hours = PAIRS / rate / 3600
        print(f"| {workers:,} | {rate:,.0f} | {rate / found[1] / workers:.0%} | {hours:,.1f} h |")
    for name, rate in limits.items():
        print(f"limit: {name}: {rate:,.0f} pairs a second")
    if arguments.plot:
        draw(arguments.plot, found, limits)
    result = {
        "noop_shards_per_s": round(noop[2], 1),
        "speedup_two_workers": round(rates[2] / rates[1], 3),
        "overhead_s": round(overhead_s, 4),
        "picture_s": round(a_picture, 5),
        "model_errors": {n: round(error, 3) for n, error in errors.items()},
        "pairs_per_s_1000": round(found[1000]),
        "limits": {name: round(rate) for name, rate in limits.items()},
    }
    print(json.dumps(result))
    if max(abs(error) for error in errors.values()) > LARGEST_ERROR:
        sys.exit(f"the model is off by more than {LARGEST_ERROR:.0%}")


def told(values: dict[int, float], form: str = ".2f") -> str:
    return ", ".join(f"{key}: {value:{form}}" for key, value in values.items())


# Measured


def noop_rate(workers: int, num_shards: int) -> float:
    """Shards a second through `jobs.shards`, with nothing to do."""
    times: list[float] = []

    def make_worker() -> Callable[[Task], None]:
        return lambda task: None

    # Workers of a part of a core, for all of them live on this machine.
    pool = PoolConfig(workers=workers, cpus_per_worker=0.0625)
    with session(ClusterConfig(cpus=2)):
        tasks = [Task(number, rows=1) for number in range(num_shards)]
        run_shards(make_worker, tasks, pool, lambda task: times.append(time.monotonic()))
    return (len(times) - 1) / (times[-1] - times[0])


@dataclass(frozen=True)
class Ingested:
    """An ingest run."""

    shards_per_s: float
    """From the first that was committed to the last."""
    seconds: np.ndarray
    """Between one committed shard and the next."""
    bytes_a_picture: float
    files_a_shard: float


def ingested(work: Path, workers: int, shard_rows: int) -> Ingested:
    """Run `viaduct ingest` with so many workers over shards of so many pictures."""
    source = drawn(work / f"source-{shard_rows}", NUM_SHARDS * shard_rows)
    raw = work / f"raw-{workers}-{shard_rows}"
    viaduct = Path(sys.executable).with_name("viaduct")
    options = [f"--workers={workers}", f"--cpus={workers}", "--threads=1"]
    command: list[str | Path] = [
        viaduct,
        "ingest",
        source,
        f"--out={raw}",
        f"--shard-rows={shard_rows}",
        *options,
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    committed = sorted(path.stat().st_mtime for path in raw.glob("[0-9]*.json"))
    files = [*raw.glob("[0-9]*"), *raw.glob("ledger/*")]
    num_bytes = sum(path.stat().st_size for path in files)
    return Ingested(
        (len(committed) - 1) / (committed[-1] - committed[0]),
        np.diff(committed),
        num_bytes / (NUM_SHARDS * shard_rows),
        len(files) / len(committed),
    )


def drawn(folder: Path, num: int) -> Path:
    """A folder of pictures, of which some are drawn and the others are the same files again."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    for number in range(num):
        file = folder / f"{number:06d}.jpg"
        if number >= NUM_DRAWN:
            os.link(folder / f"{number % NUM_DRAWN:06d}.jpg", file)
            continue
        coarse = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(PICTURE_PX, Image.Resampling.BICUBIC)
        picture.save(file, quality=90)
    return folder


# Simulated


@dataclass(frozen=True)
class Driver:
    """The process that hands out shards and takes what is told of them."""

    service_s: float
    """For a shard; one after another."""
    delay_s: float
    """Until a worker has the next shard, beside that."""


@dataclass(frozen=True)
class Store:
    """Where shards are written."""

    service_s: float
    """For a shard; one after another."""


@dataclass(frozen=True)
class Model:
    """Workers that make shards, a store and a driver."""

    driver: Driver
    store: Store
    shard_s: np.ndarray
    """What making one took, some times."""


def simulated(model: Model, workers: int, num_shards: int) -> float:
    """Shards a second, from the first that is done to the last."""
    dice = np.random.default_rng(0)
    seconds: Sequence[float] = dice.choice(model.shard_s, num_shards).tolist()
    driver_free = store_free = 0.0
    ends = []
    # Moments at which a worker has the next shard; all begin when they have started.
    ready = [0.0] * min(workers, num_shards)
    making: list[float] = []
    begun = 0
    while ready or making:
        if ready and begun < num_shards:
            heapq.heappush(making, ready.pop() + seconds[begun])
            begun += 1
            continue
        ready.clear()
        if not making:
            break
        made = heapq.heappop(making)
        store_free = max(store_free, made) + model.store.service_s
        driver_free = max(driver_free, store_free) + model.driver.service_s
        ends.append(driver_free)
        ready.append(driver_free + model.driver.delay_s)
    return (len(ends) - 1) / (ends[-1] - ends[0])


def draw(path: Path, found: dict[int, float], limits: dict[str, float]) -> None:
    """Pairs a second against workers, and what would bound them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*found.items(), strict=True), marker="o", label="simulated")
    axes.plot(list(found), [found[1] * n for n in found], color="grey", label="n times one worker")
    for (name, rate), style in zip(limits.items(), ("-.", "--", ":"), strict=True):
        axes.axhline(rate, linestyle=style, color="black", label=f"limit of the {name}")
    axes.set(xlabel="workers", ylabel="pairs a second", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
