"""`viaduct ingest` against img2dataset's own Ray mode, on the same URLs, in alternation.

    python benchmarks/ingest.py [--work DIR] [--photos FOLDER] [--rounds N] [--sets small large]

Two sets are served on loopback HTTP:

small   stamps and clipart: 8,890 PNGs, most of them small, as benchmarks/real_data.py makes them
        (needs apt-get, after `apt-get update`, and dpkg). 16 of over 100 megapixels are left out:
        ours drops them by their headers, img2dataset takes 12 GB for one and is killed.
large   the photos of a folder (pairs.jsonl and its pictures; by default those of
        ../shared/data/coco_cc beside this checkout), enlarged to 12 megapixels, as JPEGs of
        quality 92, each under several URLs.

Both sides have two processes of 32 threads, shards of equal size, a shorter side of 256 pixels,
JPEGs of quality 95, two retries and SHA-256 of what they store. img2dataset runs its ray
distributor on a Ray of two CPUs and writes WebDataset tars. Ours checks addresses, filters, hashes
and writes its ledger as it always does; it is allowed to reach loopback, and 32 requests at once.

The rate is pictures over the seconds from the first request that the server sees to the last
change of a file in the output. So the start of Ray and of the workers' imports stay out on both
sides; seconds of the whole command are printed beside it. The server is one process with one
thread that has the files in memory; it takes its share of the same cores, which is printed too.

The last line is one JSON object: speedup_small and speedup_large, of the median rates.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from real_data import PACKAGES, make_set

PROCESSES = 2
THREADS = 32
SHORT_SIDE_PX = 256
QUALITY = 95
RETRIES = 2
SMALL_AT_MOST_PX = 100_000_000
LARGE_PX = 12_000_000
LARGE_URLS = 1020
PHOTOS = Path(__file__).parents[2] / "shared/data/coco_cc"


@dataclass(frozen=True)
class Task:
    """A set to take in."""

    urls: Path
    """A jsonl of url and caption."""
    pictures: int
    shard_rows: int


@dataclass(frozen=True)
class Run:
    """What one side took for a set."""

    pictures_per_s: float
    kept: int
    wall_s: float
    server_share: float
    """CPU seconds of the server, over the seconds that count."""


# The server


class Site(asyncio.Protocol):
    """Answers GET with the file below a folder, out of memory; `/stats` tells of itself."""

    files: dict[str, bytes]
    first: float
    cpu_s: float

    def connection_made(self, transport: Any) -> None:
        self.transport, self.request = transport, b""

    def data_received(self, data: bytes) -> None:
        self.request += data
        while b"\r\n\r\n" in self.request:
            head, _, self.request = self.request.partition(b"\r\n\r\n")
            self.answer(head.split(b" ", 2)[1].decode().partition("?")[0])
            if b"connection: close" in head.lower():
                self.transport.close()

    def answer(self, path: str) -> None:
        if path == "/stats":
            state = {"first": Site.first, "cpu_s": time.process_time() - Site.cpu_s}
            Site.first, Site.cpu_s = 0.0, time.process_time()
            body = json.dumps(state).encode()
        else:
            Site.first = Site.first or time.time()
            body = Site.files[path]
        self.transport.writelines(
            [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body]
        )


def serve(folder: Path, port: int) -> None:
    """Serve the pictures below a folder for ever; a process's target."""
    Site.files = {
        f"/{file.relative_to(folder)}": file.read_bytes()
        for file in folder.rglob("*")
        if file.suffix in (".png", ".jpg")
    }
    Site.first, Site.cpu_s = 0.0, time.process_time()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Site, "127.0.0.1", port, backlog=256)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's pictures on loopback HTTP; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, port))
    process.start()
    try:
        for _ in range(300):
            try:
                stats(f"http://127.0.0.1:{port}")
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def stats(address: str) -> dict[str, float]:
    """When the first request since the last call came, and the server's CPU seconds since."""
    with urllib.request.urlopen(f"{address}/stats", timeout=5) as answer:
        return json.loads(answer.read())


# The sets


def small(work: Path, address: str) -> Task:
    Image.MAX_IMAGE_PIXELS = None  # headers alone are read
    rows = []
    for name in PACKAGES:
        for line in (work / name / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
            pair = json.loads(line)
            with Image.open(work / name / pair["file"]) as picture:
                too_large = picture.width * picture.height > SMALL_AT_MOST_PX
            if not too_large:
                rows.append((f"{address}/{name}/{pair['file']}", pair["caption"]))
    return Task(write_urls(work / "small.jsonl", rows), len(rows), 1024)


def large(work: Path, address: str) -> Task:
    names = sorted(file.name for file in (work / "large").glob("*.jpg"))
    rows = [
        (f"{address}/large/{names[number % len(names)]}?{number}", f"photo {number}")
        for number in range(LARGE_URLS)
    ]
    return Task(write_urls(work / "large.jsonl", rows), len(rows), 128)


SETS = {"small": small, "large": large}


def write_urls(out: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"url": url, "caption": caption or "none"}) for url, caption in rows]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def enlarge(photos: Path, out: Path) -> None:
    """Each photo at 12 megapixels; kept if they are there."""
    out.mkdir(parents=True, exist_ok=True)
    for line in (photos / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        file = photos / json.loads(line)["file"]
        target = out / f"{file.stem}.jpg"
        if target.exists():
            continue
        with Image.open(file) as photo:
            scale = (LARGE_PX / (photo.width * photo.height)) ** 0.5
            size = (round(photo.width * scale), round(photo.height * scale))
            enlarged = photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        enlarged.save(target.with_suffix(".part"), "JPEG", quality=92)
        target.with_suffix(".part").rename(target)


# The sides


def ours(task: Task, out: Path) -> int:
    options: dict[str, Any] = {
        "out": out,
        "shard-rows": task.shard_rows,
        "short-side-px": SHORT_SIDE_PX,
        "jpeg-quality": QUALITY,
        "threads": THREADS,
        "per-host": THREADS,
        "retries": RETRIES,
        "allow-host": "127.0.0.1",
        "workers": PROCESSES,
        "cpus": PROCESSES,
    }
    program = Path(sys.executable).with_name("viaduct")
    flags = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([program, "ingest", task.urls, *flags], check=True, stdout=sys.stderr)
    return json.loads((out / "dataset.json").read_text())["pictures"]["kept"]


def theirs(task: Task, out: Path) -> int:
    # A process of its own, for img2dataset takes over signals and Ray stays in it.
    arguments = [str(task.urls), str(out), str(task.shard_rows)]
    command = [sys.executable, __file__, "--img2dataset", *arguments]
    offline = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=offline)
    return sum(json.loads(file.read_text())["successes"] for file in out.glob("*_stats.json"))


def run_img2dataset(urls: str, out: str, shard_rows: str) -> None:
    """img2dataset's own Ray mode over a set; only the Ray it finds is ours."""
    import ray
    from img2dataset import download

    ray.init(num_cpus=PROCESSES, include_dashboard=False)
    download(
        urls,
        output_folder=out,
        distributor="ray",
        processes_count=PROCESSES,
        thread_count=THREADS,
        number_sample_per_shard=int(shard_rows),
        image_size=SHORT_SIDE_PX,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=QUALITY,
        input_format="jsonl",
        caption_col="caption",
        output_format="webdataset",
        extract_exif=False,  # ours does not keep it
        compute_hash="sha256",
        retries=RETRIES,
    )


SIDES = {"img2dataset": theirs, "viaduct": ours}


def measure(side: str, task: Task, out: Path, address: str) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    stats(address)
    begun = time.monotonic()
    kept = SIDES[side](task, out)
    wall_s = time.monotonic() - begun
    seen = stats(address)
    ended = max(file.stat().st_mtime for file in out.rglob("*") if file.suffix in _OUTPUT)
    seconds = ended - seen["first"]
    return Run(task.pictures / seconds, kept, wall_s, seen["cpu_s"] / seconds)


_OUTPUT = (".tar", ".parquet", ".arrow", ".json")


def compare(name: str, task: Task, work: Path, address: str, rounds: int) -> float:
    """Both sides in alternation; our median rate over theirs."""
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            run = measure(side, task, work / f"{name}-{side}", address)
            rates[side].append(run.pictures_per_s)
            print(
                f"{name} {side}: {run.pictures_per_s:.1f} pictures/s, {run.kept} of "
                f"{task.pictures} kept, whole command {run.wall_s:.1f} s, "
                f"server {run.server_share:.2f} of a core",
                flush=True,
            )
    ours_, theirs_ = (statistics.median(rates[side]) for side in ("viaduct", "img2dataset"))
    return round(ours_ / theirs_, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ingest-benchmark"))
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="pairs.jsonl and pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--img2dataset", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.img2dataset:
        return run_img2dataset(*arguments.img2dataset)
    work = arguments.work.absolute()
    for name in PACKAGES:
        make_set(name, work / name)
    enlarge(arguments.photos, work / "large")
    speedups = {}
    with served(work) as address:
        for name in arguments.sets:
            task = SETS[name](work, address)
            speedups[f"speedup_{name}"] = compare(name, task, work, address, arguments.rounds)
    print(json.dumps(speedups))


if __name__ == "__main__":
    main()
