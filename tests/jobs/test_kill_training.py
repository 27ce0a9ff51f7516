"""SIGKILL of a training, embed, capfilt and index: the same command again ends as an unbroken run.

The unbroken runs have their one rank in this process, those that are killed are commands of their
own: their losses are equal bit for bit.
"""

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from jobs.cli import main
from pipeline.dataset import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

LONGER = ("--steps", 60, "--checkpoint-every", 5, "--validate-every", 30)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def killed_midway(
    started: Callable, log: Path, begun: Callable[[], bool], done: Path, within_s: float, *words
) -> bool:
    """Kill a command a little after it has begun; False where it was done before.

    What writes for it has to notice by itself that it is gone; Ray's agents, which do not, are
    killed at the end.
    """
    with started(log, *words) as job:
        job.wait_until(begun)
        left = [p for p in job.descendants() if not p.name().endswith("Agent")]
        time.sleep(random.uniform(0, within_s))
        job.kill()
        midway = not done.exists()
        _, alive = psutil.wait_procs(left, timeout=30)
        assert not alive
    return midway


def finish(started: Callable, log: Path, *words: object) -> None:
    with started(log, *words) as job:
        job.ends_well()


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


def test_a_training_that_was_killed_at_three_random_moments_ends_bit_for_bit_the_same(
    tmp_path, started, stage1_command, longer, read_training
):
    """Wherever it is: at its start, in a step, while it saves."""
    out, log = tmp_path / "stage1", tmp_path / "log.txt"
    command = stage1_command(out, *LONGER)
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(1, 50), 3))
    for moment in moments:
        with started(log, *command) as job:
            job.wait_until(lambda moment=moment: steps_told(out) >= moment)
            time.sleep(draw.uniform(0, 0.05))
            job.kill()
    finish(started, log, *command)
    assert read_training(out) == longer, seed
    assert len(json.loads((out / "run.json").read_text())["runs"]) > 1
    assert not list(out.rglob(".tmp-*"))


def steps_told(out: Path) -> int:
    """Of how many steps a training has told; lines that may be cut back count too."""
    file = out / "metrics.jsonl"
    return file.read_text().count('"train"') if file.exists() else 0


def test_a_training_whose_controller_is_killed_ends_by_itself_as_if_it_had_not_been(
    tmp_path, started, stage1_command, longer, read_training
):
    """That of Ray Train; tests/jobs/test_node_kill.py kills ranks."""
    out, log = tmp_path / "stage1", tmp_path / "log.txt"
    with started(log, *stage1_command(out, *LONGER)) as job:
        job.wait_until((out / "checkpoints" / "step-000005" / "checkpoint.json").exists)
        (process,) = (process for process in job.descendants() if is_controller(process))
        process.kill()
        job.ends_well()
    (ran,) = json.loads((out / "run.json").read_text())["runs"]
    assert ran["phases"][0]["failures"] == 1
    assert read_training(out) == longer


def is_controller(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        return process.cmdline()[0].startswith("ray::TrainController")
    return False


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
    tmp_path, started, embed_command, embeddings
):
    """Once among the pictures, once among the captions."""
    out, log = tmp_path / "embeddings", tmp_path / "log.txt"
    command = embed_command(out)
    for kind in KINDS:
        moment, done = out / kind / f"{random.randrange(3):05d}.json", out / kind / "dataset.json"
        kill_midway(
            out, log, partial(killed_midway, started, log, moment.exists, done, 0.005, *command)
        )
    finish(started, log, *command)
    for kind in KINDS:
        again, unbroken = (Dataset.open(str(home / kind)) for home in (out, embeddings))
        assert again.digest == unbroken.digest
    assert not list(out.rglob(".tmp-*"))


def test_capfilt_that_was_killed_twice_goes_on_to_the_same_digest(
    tmp_path, started, data, unbroken, stage1_command, rank_here
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
        kill_midway(
            out, log, partial(killed_midway, started, log, moment, done, 0.005, *command(out))
        )
    finish(started, log, *command(out))
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
    tmp_path, started, data, embeddings, options, begun
):
    def command(out: Path) -> list[object]:
        return ["index", embeddings, "--pairs", data / "pairs", "--out", out, *options]

    run(*command(tmp_path / "unbroken"))
    out, log = tmp_path / "index", tmp_path / "log.txt"
    moment = (out / begun).exists
    killed = partial(killed_midway, started, log, moment, out / "index.json", 0.02, *command(out))
    kill_midway(out, log, killed)
    finish(started, log, *command(out))
    found, expected = (
        json.loads((tmp_path / name / "index.json").read_text())["digest"]
        for name in ("index", "unbroken")
    )
    assert found == expected
    assert not list(out.rglob(".tmp-*"))
