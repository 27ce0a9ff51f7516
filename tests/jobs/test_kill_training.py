"""SIGKILL of a training, embed, capfilt and index: the same command again ends as an unbroken run.

The unbroken runs have their one rank in this process, those that are killed are commands of their
own: their losses are equal bit for bit.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from jobs.cli import main
from pipeline.dataset import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

VIADUCT = Path(sys.executable).with_name("viaduct")
LONGER = ("--steps", 60, "--checkpoint-every", 5, "--validate-every", 30)
PATIENCE_S = 240


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@contextlib.contextmanager
def started(log: Path, *arguments: object) -> Iterator[psutil.Popen]:
    """A command of its own; at the end whatever it left behind is killed."""
    with log.open("ab") as file:
        words = [VIADUCT, *map(str, arguments)]
        job = psutil.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        descendants: set[psutil.Process] = set()
        try:
            job.descendants = lambda: remember(job, descendants)
            yield job
        finally:
            for process in {job, *descendants, *remember(job, descendants)}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            job.wait()


def remember(job: psutil.Popen, known: set[psutil.Process]) -> set[psutil.Process]:
    """All processes below the job, those that it had before too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        known |= set(job.children(recursive=True))
    return known


def finished(log: Path, *arguments: object) -> None:
    with started(log, *arguments) as job:
        assert job.wait(timeout=PATIENCE_S) == 0, log.read_text()


def wait_until(true: Callable[[], bool], job: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def killed_midway(
    log: Path, begun: Callable[[], bool], done: Path, within_s: float, *arguments: object
) -> bool:
    """Kill a command a little after it has begun; False where it was done before.

    What writes for it has to notice by itself that it is gone; Ray's agents, which do not, are
    killed at the end.
    """
    with started(log, *arguments) as job:
        wait_until(begun, job, log)
        left = [p for p in job.descendants() if not p.name().endswith("Agent")]
        time.sleep(random.uniform(0, within_s))
        job.kill()
        job.wait()
        midway = not done.exists()
        _, alive = psutil.wait_procs(left, timeout=30)
        assert not alive
    return midway


def kill_midway(out: Path, log: Path, kill: Callable[[], bool]) -> None:
    """Try until the kill comes before the end."""
    for _ in range(8):
        if kill():
            return
        shutil.rmtree(out)
    pytest.fail(f"the job was always faster than the kill: {log.read_text()}")


# Training


@pytest.fixture(scope="module")
def longer(tmp_path_factory, stage1_command, rank_here, read_training):
    """What a longer training that nothing disturbed tells."""
    out = tmp_path_factory.mktemp("longer") / "stage1"
    with rank_here():
        run(*stage1_command(out, *LONGER))
    return read_training(out)


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path, stage1_command, longer, read_training
):
    out, log = tmp_path / "stage1", tmp_path / "log.txt"
    command = stage1_command(out, *LONGER)
    first = out / "checkpoints" / "step-000005" / "checkpoint.json"
    done = out / "checkpoint.json"
    kill_midway(out, log, partial(killed_midway, log, first.exists, done, 1.0, *command))
    finished(log, *command)
    assert read_training(out) == longer
    assert len(json.loads((out / "run.json").read_text())["runs"]) == 2
    assert not list(out.rglob(".tmp-*"))


def test_a_training_that_was_killed_at_three_random_moments_ends_bit_for_bit_the_same(
    tmp_path, stage1_command, longer, read_training
):
    """Wherever it is: at its start, in a step, while it saves."""
    out, log = tmp_path / "stage1", tmp_path / "log.txt"
    command = stage1_command(out, *LONGER)
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(1, 50), 3))
    for moment in moments:
        with started(log, *command) as job:
            wait_until(lambda moment=moment: steps_told(out) >= moment, job, log)
            time.sleep(draw.uniform(0, 0.05))
            job.kill()
            job.wait()
    finished(log, *command)
    assert read_training(out) == longer, seed
    assert len(json.loads((out / "run.json").read_text())["runs"]) > 1
    assert not list(out.rglob(".tmp-*"))


def steps_told(out: Path) -> int:
    """Of how many steps a training has told; lines that may be cut back count too."""
    file = out / "metrics.jsonl"
    return file.read_text().count('"train"') if file.exists() else 0


def ranks_of(job: psutil.Popen) -> list[psutil.Process]:
    found = []
    for process in job.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_training_whose_rank_is_killed_ends_by_itself_as_if_it_had_not_been(
    tmp_path, stage1_command, longer, read_training, num_ranks
):
    out, log = tmp_path / "stage1", tmp_path / "log.txt"
    options = (*LONGER, "--ranks", num_ranks)
    first = out / "checkpoints" / "step-000005" / "checkpoint.json"
    with started(log, *stage1_command(out, *options)) as job:
        wait_until(first.exists, job, log)
        ranks = ranks_of(job)
        assert len(ranks) == num_ranks
        os.kill(random.choice(ranks).pid, signal.SIGKILL)
        assert job.wait(timeout=PATIENCE_S) == 0, log.read_text()
    (ran,) = json.loads((out / "run.json").read_text())["runs"]
    assert ran["phases"][0]["failures"] == 1
    if num_ranks > 1:
        unbroken = tmp_path / "unbroken"
        finished(log, *stage1_command(unbroken, *options))
        longer = read_training(unbroken)
    assert read_training(out) == longer


# Embed, capfilt and index


@pytest.fixture(scope="module")
def embed_command(data, unbroken) -> Callable[[Path], list[object]]:
    where = ("--features", data / "features", "--captions", data / "pairs")
    return lambda out: ["embed", "--checkpoint", unbroken, *where, "--out", out]


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory, embed_command) -> Path:
    out = tmp_path_factory.mktemp("kill") / "embeddings"
    run(*embed_command(out))
    return out


KINDS = ("image_embeddings", "text_embeddings")


def test_embed_that_was_killed_twice_goes_on_to_the_same_digests(
    tmp_path, embed_command, embeddings
):
    """Once among the pictures, once among the captions."""
    out, log = tmp_path / "embeddings", tmp_path / "log.txt"
    command = embed_command(out)
    for kind in KINDS:
        moment, done = out / kind / f"{random.randrange(3):05d}.json", out / kind / "dataset.json"
        kill_midway(out, log, partial(killed_midway, log, moment.exists, done, 0.005, *command))
    finished(log, *command)
    for kind in KINDS:
        again, unbroken = (Dataset.open(str(home / kind)) for home in (out, embeddings))
        assert again.digest == unbroken.digest
    assert not list(out.rglob(".tmp-*"))


def test_capfilt_that_was_killed_twice_goes_on_to_the_same_digest(
    tmp_path, data, unbroken, stage1_command, rank_here
):
    judge = tmp_path / "judge"
    with rank_here():
        run(*stage1_command(judge, "--seed", 1, "--steps", 2))
    where = ("--features", data / "features", "--pairs", data / "pairs", "--judge", judge)

    def command(out: Path) -> list[object]:
        return ["capfilt", *where, "--captioner", unbroken, "--batch-size", 2, "--out", out]

    run(*command(tmp_path / "unbroken"))
    out, log = tmp_path / "candidates", tmp_path / "log.txt"
    for number in (0, 2):
        moment = (out / f"{number:05d}.json").exists
        done = out / "dataset.json"
        kill_midway(out, log, partial(killed_midway, log, moment, done, 0.005, *command(out)))
    finished(log, *command(out))
    again, expected = (Dataset.open(str(tmp_path / its)) for its in ("candidates", "unbroken"))
    assert again.digest == expected.digest
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("options", "begun"),
    [
        ((), "."),
        (("--kind", "ivfpq", "--threads", 1), "00000/.work/gathered.json"),
        (("--kind", "ivf", "--shard-pictures", 20), "00000.json"),
    ],
)
def test_index_that_was_killed_goes_on_to_the_same_digest(
    tmp_path, data, embeddings, options, begun
):
    def command(out: Path) -> list[object]:
        return ["index", embeddings, "--pairs", data / "pairs", "--out", out, *options]

    run(*command(tmp_path / "unbroken"))
    out, log = tmp_path / "index", tmp_path / "log.txt"
    moment = (out / begun).exists
    killed = partial(killed_midway, log, moment, out / "index.json", 0.02, *command(out))
    kill_midway(out, log, killed)
    finished(log, *command(out))
    found, expected = (
        json.loads((tmp_path / name / "index.json").read_text())["digest"]
        for name in ("index", "unbroken")
    )
    assert found == expected
    assert not list(out.rglob(".tmp-*"))
