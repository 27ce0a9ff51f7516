"""SIGKILL at a random moment: the same command again ends with the digests of an unbroken run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
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


# For each moment: the step, the folder in which shards appear, and how many it makes.
MOMENTS = {
    "ingest": ("ingest", "raw", 60),
    "curate: hashes": ("curate", "pairs/.work/hashes", 60),
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


@pytest.mark.parametrize("step", STEPS)
def test_a_job_whose_worker_is_killed_ends_by_itself_with_the_same_digest(unbroken, step):
    source, digests = unbroken
    home = source / f"worker-{step}"
    home.mkdir()
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        (home / OUT[earlier]).symlink_to(source / "unbroken" / OUT[earlier])

    job = start(home, step)
    folder = home / (OUT[step] if step != "curate" else "pairs/.work/hashes")
    wait_until((folder / "00003.json").exists, job)
    workers = [
        process.pid
        for process in psutil.Process(job.pid).children(recursive=True)
        if "ray::Worker" in " ".join(process.cmdline())
    ]
    os.kill(random.choice(workers), signal.SIGKILL)

    assert job.wait(timeout=300) == 0, (home / "log.txt").read_text()
    digest = json.loads((home / OUT[step] / "dataset.json").read_text())["digest"]
    assert digest == digests[step]


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
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"raw: another job is writing here (process {first.pid} on" in second.stderr
    assert first.wait(timeout=300) == 0
    assert json.loads((home / "raw/dataset.json").read_text())["digest"] == digests["ingest"]


# A file system of its own in a mount namespace of its own: needs no rights of root.
_FULL_DISK = """
mount -t tmpfs -o size=160k tmpfs raw || exit 99
"$1" ingest ../source --out raw --shard-rows 4; echo "first: $?"
ls raw | grep -c json
mount -o remount,size=64m raw
"$1" ingest ../source --out raw --shard-rows 4; echo "second: $?"
cat raw/dataset.json
"""


def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_room(unbroken):
    source, digests = unbroken
    home = source / "full"
    (home / "raw").mkdir(parents=True)
    run = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", _FULL_DISK, "sh", VIADUCT],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "first: 2" in run.stdout, run.stderr
    assert "the disk is full; what was committed stays" in run.stderr
    assert "Traceback" not in run.stderr
    assert "second: 0" in run.stdout
    assert digests["ingest"] in run.stdout
