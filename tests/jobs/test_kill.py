"""SIGKILL at a random moment: the same command again ends with the digests of an unbroken run."""

import contextlib
import functools
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

VIADUCT = Path(sys.executable).with_name("viaduct")
NUM_PICTURES = 240
STEPS = {
    "ingest": ["ingest", "SOURCE", "--out", "raw", "--shard-rows", "4"],
    "curate": ["curate", "raw", "--out", "pairs", "--shard-rows", "4"],
    "features": [
        *("features", "pairs", "--out", "features", "--batch-size", "4"),
        *("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random"),
    ],
}
OUT = {"ingest": "raw", "curate": "pairs", "features": "features"}


def start(home: Path, step: str, *options: str) -> subprocess.Popen[bytes]:
    words = ["../source" if word == "SOURCE" else word for word in STEPS[step]]
    log = (home / "log.txt").open("ab")
    return subprocess.Popen([VIADUCT, *words, *options], cwd=home, stdout=log, stderr=log)


def finish(home: Path, step: str, *options: str) -> str:
    """Run a step to its end; its output's digest."""
    assert start(home, step, *options).wait(timeout=300) == 0, (home / "log.txt").read_text()
    return json.loads((home / OUT[step] / "dataset.json").read_text())["digest"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, draw_folder):
    """Home, and the digests of the three steps of an unbroken run."""
    home = tmp_path_factory.mktemp("kill")
    draw_folder(home / "source", NUM_PICTURES)
    (home / "unbroken").mkdir()
    return home, {step: finish(home / "unbroken", step) for step in STEPS}


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


# For each moment: the step, the folder in which shards appear, and how many it makes. What curate
# does first, the hashes, is made shard by shard as `ingest` and `features` make theirs.
MOMENTS = {
    "ingest": ("ingest", "raw", 60),
    "curate: plan": ("curate", "pairs/.work/plan", 0),
    "curate: output": ("curate", "pairs", 52),
    "features": ("features", "features", 52),
}


def begun(home: Path, moment: str) -> Callable[[], bool]:
    """Whether the job is at a random shard of that moment's phase."""
    _, folder, num_shards = MOMENTS[moment]
    if not num_shards:  # the plan is one shard: its phase begins when all hashes are there
        return (home / "pairs/.work/hashes/dataset.json").exists
    return (home / folder / f"{random.randrange(num_shards * 2 // 3):05d}.json").exists


def killed_midway(home: Path, moment: str) -> bool:
    """Start the moment's step and kill it there; False where it was done before the kill came."""
    step = MOMENTS[moment][0]
    job = start(home, step)
    reached = begun(home, moment)
    while not reached() and job.poll() is None:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.5 if "plan" in moment else 0.02))
    job.kill()
    job.wait()
    return not (home / OUT[step] / "dataset.json").exists()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_job_goes_on_to_the_same_digests(unbroken, moment):
    source, digests = unbroken
    home = source / moment.replace(": ", "-")
    home.mkdir()
    step = MOMENTS[moment][0]
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        (home / OUT[earlier]).symlink_to(source / "unbroken" / OUT[earlier])

    tries = 5
    while not killed_midway(home, moment):
        tries -= 1
        assert tries, "the job was always faster than the kill"
        shutil.rmtree(home / OUT[step])

    assert finish(home, step) == digests[step]
    verified = subprocess.run([VIADUCT, "inspect", home / OUT[step], "--verify"], check=False)
    assert verified.returncode == 0
    assert not list((home / OUT[step]).rglob(".tmp-*"))


def test_curate_whose_worker_is_killed_ends_by_itself_with_the_same_digest(unbroken):
    """Of other jobs tests/jobs/test_node_kill.py kills workers, with their nodes."""
    source, digests = unbroken
    home = source / "worker-curate"
    home.mkdir()
    (home / "raw").symlink_to(source / "unbroken/raw")

    job = start(home, "curate")
    wait_until((home / "pairs/.work/hashes/00003.json").exists, job)
    workers = [
        process.pid
        for process in psutil.Process(job.pid).children(recursive=True)
        if "ray::Worker" in " ".join(process.cmdline())
    ]
    os.kill(random.choice(workers), signal.SIGKILL)

    assert job.wait(timeout=300) == 0, (home / "log.txt").read_text()
    digest = json.loads((home / "pairs/dataset.json").read_text())["digest"]
    assert digest == digests["curate"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_cleanly_and_say_how_to_go_on(unbroken, stop):
    source, digests = unbroken
    home = source / stop.name
    home.mkdir()
    job = start(home, "ingest")
    wait_until((home / "raw" / "00002.json").exists, job)
    job.send_signal(stop)
    assert job.wait(timeout=60) == 130
    log = (home / "log.txt").read_text()
    assert "stopped; the same command goes on from here" in log
    assert "Traceback" not in log
    assert finish(home, "ingest") == digests["ingest"]


def test_a_second_job_on_the_same_folder_is_refused(unbroken):
    source, digests = unbroken
    home = source / "twice"
    home.mkdir()
    first = start(home, "ingest")
    wait_until((home / "raw" / "00001.json").exists, first)
    first.send_signal(signal.SIGSTOP)  # so that it is not done before the second one begins
    second = subprocess.run(
        [VIADUCT, "ingest", "../source", "--out", "raw", "--shard-rows", "4"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    asked = [VIADUCT, "status", home / "raw", "--json"]
    (facts,) = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    assert (facts["state"], facts["running"]["process"]) == ("running", first.pid)
    assert facts["shards"]["total"] == 60
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    named = f"(viaduct ingest, process {first.pid} on"
    assert f"raw: another job is writing here {named}" in second.stderr
    assert first.wait(timeout=300) == 0
    assert json.loads((home / "raw/dataset.json").read_text())["digest"] == digests["ingest"]


def ingest_urls(home: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Begin to ingest the table of URLs beside `home`."""
    words = ["ingest", "../urls.jsonl", "--out", "raw", "--shard-rows", "20", "--workers", "2"]
    words += ["--allow-host", "127.0.0.1", *options]
    log = (home / "log.txt").open("ab")
    return subprocess.Popen(
        [VIADUCT, *words], cwd=home, stdout=log, stderr=log, env=os.environ | (env or {})
    )


def digest_in(home: Path) -> str:
    return json.loads((home / "raw/dataset.json").read_text())["digest"]


class Gate(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; while the gate is closed, one picture is kept waiting."""

    WAITING = "0130"
    gate = threading.Event()

    def do_GET(self) -> None:
        if self.WAITING in self.path:
            self.gate.wait(100)
        with contextlib.suppress(OSError):  # whoever waited may be dead
            super().do_GET()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def urls(tmp_path, make_folder):
    """Home, and the digest of an unbroken ingest of the URLs in urls.jsonl there."""
    handler = functools.partial(Gate, directory=str(make_folder(NUM_PICTURES)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Gate.gate.set()
    rows = map(json.loads, (tmp_path / "source/pairs.jsonl").read_text().splitlines())
    address = f"http://127.0.0.1:{server.server_port}"
    lines = [json.dumps({**row, "url": f"{address}/{row['file']}"}) for row in rows]
    (tmp_path / "urls.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "unbroken").mkdir()
    job = ingest_urls(tmp_path / "unbroken")
    assert job.wait(timeout=300) == 0, (tmp_path / "unbroken/log.txt").read_text()
    yield tmp_path, digest_in(tmp_path / "unbroken")
    Gate.gate.set()
    server.shutdown()
    server.server_close()


def workers_at_work(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that make a shard just now."""
    below = psutil.Process(job.pid).children(recursive=True)
    return [process for process in below if "ray::Worker.run" in " ".join(process.cmdline())]


def test_an_ingest_whose_worker_was_killed_is_whole_after_the_same_command_again(urls):
    home, digest = urls[0] / "killed", urls[1]
    home.mkdir()
    Gate.gate.clear()
    job = ingest_urls(home, "--attempts", "1", "--timeout-s", "100")
    others = [home / f"raw/{number:05d}.json" for number in range(12) if number != 6]
    wait_until(lambda: all(other.exists() for other in others), job)
    wait_until(lambda: len(workers_at_work(job)) == 1, job)  # the other one has told of its last
    (worker,) = workers_at_work(job)
    worker.kill()
    assert job.wait(timeout=300) == 3, (home / "log.txt").read_text()
    assert "1 shards set aside" in (home / "log.txt").read_text()
    assert not (home / "raw/dataset.json").exists()
    Gate.gate.set()
    assert ingest_urls(home).wait(timeout=300) == 0
    assert digest_in(home) == digest
    assert not list((home / "raw").rglob(".tmp-*"))


def test_an_ingest_whose_head_is_gone_is_whole_after_the_same_command_again(urls):
    home, digest = urls[0] / "headless", urls[1]
    home.mkdir()
    Gate.gate.clear()
    job = ingest_urls(home, "--timeout-s", "100")
    wait_until((home / "raw/00002.json").exists, job)
    head = [
        process
        for process in psutil.Process(job.pid).children(recursive=True)
        if process.name() in ("gcs_server", "raylet")
    ]
    assert len(head) == 2
    for process in head:
        process.kill()
    Gate.gate.set()
    job.wait(timeout=300)  # with what is its own to say: it may even end well
    assert ingest_urls(home).wait(timeout=300) == 0
    assert digest_in(home) == digest
    assert not list((home / "raw").rglob(".tmp-*"))


# Each Python process of the job imports this first. A mount would need rights that not every
# machine gives; what a full disk does to a process is that its writes end like this.
_FULL_DISK = """
import builtins, errno, io, os

HOME, ROOM = os.environ["DISK"], int(os.environ["DISK_BYTES"])
real_open = builtins.open


class File(io.FileIO):
    def write(self, data):
        files = (os.path.join(where, f) for where, _, names in os.walk(HOME) for f in names)
        used = 0
        for file in files:
            try:
                used += os.path.getsize(file)
            except FileNotFoundError:
                continue
        if used + memoryview(data).nbytes > ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def open(file, mode="r", *arguments, **options):
    if mode == "wb" and str(file).startswith(HOME):
        return io.BufferedWriter(File(file, "wb"))
    return real_open(file, mode, *arguments, **options)


builtins.open = open
"""


def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_room(urls):
    home, digest = urls[0] / "full", urls[1]
    (home / "path").mkdir(parents=True)  # goes before all other places of modules
    (home / "path/sitecustomize.py").write_text(_FULL_DISK)
    size = sum(file.stat().st_size for file in (urls[0] / "unbroken/raw").rglob("*.arrow"))
    for share in (0.25, 0.8):
        disk = {"DISK": str(home / "raw"), "DISK_BYTES": str(int(size * share))}
        path = f"{home / 'path'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        job = ingest_urls(home, env={**disk, "PYTHONPATH": path})
        assert job.wait(timeout=300) == 2
        log = (home / "log.txt").read_text()
        assert "the disk is full; what was committed stays" in log
        assert "Traceback" not in log
    assert list((home / "raw").glob("0*.json"))
    assert ingest_urls(home).wait(timeout=300) == 0
    assert digest_in(home) == digest
    assert not list((home / "raw").rglob(".tmp-*"))
