"""The memory of `viaduct ingest` over two million rows, of which almost all are refused at once.

    python benchmarks/ingest_memory.py [--work DIR] [--rows N]

The table has refused schemes, texts that are no URL, and addresses that strangers' URLs may not
reach, so nothing leaves the machine; each 500th row is a picture of 1.5 megapixels on loopback, so
that workers decode too. The resident memory of each process is sampled four times a second:
`worker` is the largest of two workers, with what they have mapped; `driver` the command itself. A
half is a half of the time in which there are workers. It takes five to ten minutes on two cores.

The last line is one JSON object: peak_rss_mb, of a worker; its halves; the driver's; rows_per_s.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
from ingest import served
from PIL import Image

ROWS = 2_000_000
ROWS_PER_PICTURE = 500
NUM_PICTURES = 20
SIZE_PX = (1500, 1000)
REFUSED = (
    "ftp://files.example.org/{}.jpg",
    "file:///srv/pictures/{}.jpg",
    "http://10.0.0.7/{}.jpg",
    "http://[::1]/{}.jpg",
    "http://169.254.169.254/latest/{}",
    "https://user@example.org/{}.jpg",
    "http:///{}.jpg",
    "no URL {}",
)


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        coarse = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(SIZE_PX, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)


def write_table(out: Path, rows: int, address: str) -> None:
    """A table of URLs and captions, written in pieces."""
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pa.parquet.ParquetWriter(out, schema) as writer:
        for start in range(0, rows, 1 << 16):
            numbers = range(start, min(start + (1 << 16), rows))
            urls = [url(number, address) for number in numbers]
            captions = [f"a caption of row {number}" for number in numbers]
            writer.write_table(pa.table([urls, captions], schema=schema))


def url(number: int, address: str) -> str:
    if number % ROWS_PER_PICTURE == 0:
        return f"{address}/{number // ROWS_PER_PICTURE % NUM_PICTURES}.jpg?{number}"
    return REFUSED[number % len(REFUSED)].format(number)


def resident_mb(job: psutil.Process) -> Iterator[tuple[str, float]]:
    """Megabytes of each process that counts, with its role."""
    for process in [job, *job.children(recursive=True)]:
        try:
            name = " ".join(process.cmdline())
            role = "driver" if process == job else "worker" if "ray::Worker" in name else ""
            if role:
                yield role, process.memory_info().rss / 1e6
        except psutil.Error:  # it has just ended
            continue


def watch(job: psutil.Process, process: subprocess.Popen[bytes]) -> tuple[list[float], float]:
    """The largest worker's megabytes at each moment when there was one, and the driver's peak."""
    workers: list[float] = []
    driver = 0.0
    while process.poll() is None:
        now = list(resident_mb(job))
        driver = max([driver, *(mb for role, mb in now if role == "driver")])
        if largest := max((mb for role, mb in now if role == "worker"), default=0.0):
            workers.append(largest)
        time.sleep(0.25)
    return workers, driver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ingest-memory"))
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    work, rows = arguments.work.absolute(), arguments.rows
    draw(work / "pictures")
    out = work / "raw"
    shutil.rmtree(out, ignore_errors=True)
    with served(work / "pictures") as address:
        write_table(work / "urls.parquet", rows, address)
        program = Path(sys.executable).with_name("viaduct")
        where = [work / "urls.parquet", "--out", out, "--allow-host", "127.0.0.1"]
        begun = time.monotonic()
        process = subprocess.Popen(
            [program, "ingest", *where, "--workers", "2", "--cpus", "2"], stdout=sys.stderr
        )
        workers, driver = watch(psutil.Process(process.pid), process)
        seconds = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(process.returncode)
    pictures = json.loads((out / "dataset.json").read_text())["pictures"]
    print(json.dumps(pictures))
    if (pictures["in"], pictures["kept"]) != (rows, -(-rows // ROWS_PER_PICTURE)):
        raise SystemExit("rows were lost")
    half = len(workers) // 2
    figures = {
        "peak_rss_mb": max(workers),
        "first_half_mb": max(workers[:half]),
        "second_half_mb": max(workers[half:]),
        "driver_rss_mb": driver,
        "rows_per_s": rows / seconds,
    }
    print(json.dumps({name: round(value) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
