"""Machines die under a job: it ends by itself with the digests or losses of an unbroken run.

The cluster is Ray's own for tests: a head without cores, where the driver is, and three nodes of
one core each. A node is a raylet and what runs below it, all on this machine. A worker is halted
and looked at before its node dies, so that it is certain to be in the middle of its work.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private.node import Node
from ray._private.utils import get_system_memory, get_used_memory
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _initialize_internal_kv

from jobs.cli import main
from pipeline.dataset import Dataset
from pipeline.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

NUM_NODES = 3
STORE = {"object_store_memory": 80 << 20}
SERVERS = ("gcs_server", "raylet")
SYSTEM = {
    "gcs_rpc_server_reconnect_timeout_s": 600,
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
"""A silent node is given up after ten seconds, a silent head later than here; by Ray's defaults
either takes a minute."""
SHARD = "ray::Worker.run"
RANK = "ray::RayTrainWorker"
"""What processes are called while they make a shard, and for as long as they train."""


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


# Machines


class Machines:
    """A head and its nodes."""

    def __init__(self) -> None:
        self._silent: list[Node] = []
        self._clusters: list[Cluster] = []
        self._begin()

    def _begin(self) -> None:
        self._clusters.append(Cluster())
        own = {"num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM}
        self._cluster.add_node(**own, **STORE)
        self._fill()

    def _fill(self) -> None:
        for _ in range(NUM_NODES - len(self._cluster.worker_nodes)):
            self._cluster.add_node(wait=False, num_cpus=1, **STORE)
        self._cluster.wait_for_nodes()

    @property
    def _cluster(self) -> Cluster:
        return self._clusters[-1]

    @property
    def address(self) -> str:
        return self._cluster.address

    def mend(self) -> None:
        """Have all nodes up, and nothing left of those that are lost."""
        self._bury()
        self._fill()

    def _bury(self) -> None:
        for node in self._silent:
            kill(node, self._cluster)
        self._silent.clear()
        for cluster in self._clusters[:-1]:
            for node in list(cluster.worker_nodes):
                kill(node, cluster)

    def close(self) -> None:
        self._bury()
        self._cluster.shutdown()
        _initialize_internal_kv(
            global_worker.gcs_client
        )  # of this process's own Ray: forgotten too

    @contextlib.contextmanager
    def one_more(self, **options: Any) -> Iterator[None]:
        """A node besides the others."""
        node = self._cluster.add_node(**STORE, **options)
        yield
        kill(node, self._cluster)

    def lose_node_of(self, worker: psutil.Process, how: str) -> None:
        """As by a cut of its power (`killed`), or of its network (`silent`): nobody is told."""
        (node,) = (node for node in self._cluster.worker_nodes if worker in processes(node))
        for process in processes(node):
            process.suspend()
        if how == "silent":
            self._silent.append(node)
        else:
            kill(node, self._cluster)

    def lose_head(self) -> None:
        """The head dies, and its nodes know nothing of the new cluster that begins elsewhere."""
        kill(self._cluster.head_node, self._cluster)
        self._begin()

    def workers(self, title: str) -> list[psutil.Process]:
        """All processes of nodes that are called so."""
        below = (process for node in self._cluster.worker_nodes for process in processes(node))
        return [process for process in below if is_called(process, title)]

    def halted(self, title: str) -> psutil.Process | None:
        """A worker that has been halted in the middle of what it is called for."""
        for process in self.workers(title):
            process.suspend()
            if is_called(process, title):
                return process
            process.resume()
        return None


def processes(node: Node) -> list[psutil.Process]:
    """What runs on a node, as far as jobs are concerned."""
    found = [
        psutil.Process(its.process.pid)
        for kind in SERVERS
        for its in node.all_processes.get(kind, [])
    ]
    return [*found, *(below for its in found for below in its.children(recursive=True))]


def kill(node: Node, cluster: Cluster) -> None:
    """All of it at once."""
    for process in processes(node):
        process.suspend()
    for process in processes(node):
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


def is_called(process: psutil.Process, title: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        return process.cmdline()[0].startswith(title)
    return False


@pytest.fixture(scope="module")
def cluster(ray_token) -> Iterator[Machines]:
    home = Path(tempfile.mkdtemp(prefix="viaduct-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(home))  # or it would be this machine's current cluster
        with contextlib.closing(Machines()) as machines:
            yield machines
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def machines(cluster) -> Machines:
    """All of them up."""
    cluster.mend()
    return cluster


# Shards


@pytest.fixture(scope="module")
def unbroken_jobs(tmp_path_factory, draw_folder, unbroken) -> dict[str, tuple[Path, list[object]]]:
    """What each job made where nothing died, and its command but for `--out`."""
    home = tmp_path_factory.mktemp("nodes")
    encoder = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random")
    beside = ("--pairs", home / "pairs", "--features", home / "features")
    commands = {
        "raw": ["ingest", draw_folder(home / "source", 48), "--shard-rows", 2],
        "pairs": ["curate", home / "raw", "--shard-rows", 3],
        "features": ["features", home / "pairs", *encoder],
        "candidates": ["capfilt", *beside, "--captioner", unbroken, "--max-tokens", 4],
    }
    for name, command in commands.items():
        run(*command, "--out", home / name)
    return {command[0]: (home / name, command) for name, command in commands.items()}


def assert_alike(made: Path, unbroken: Path) -> None:
    """No row is lost, none is there twice, and nothing half written is left."""
    made_, expected = (Dataset.open(str(folder)) for folder in (made, unbroken))
    assert made_.digest == expected.digest
    assert list(verify(made_)) == []
    uids = [uid for shard in made_.shards() for uid in shard.table.column("uid").to_pylist()]
    assert len(uids) == len(set(uids)) == made_.manifest.pictures.num_kept
    assert not list(made.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("job", "how"), [("ingest", "silent"), ("features", "killed"), ("capfilt", "killed")]
)
def test_a_job_that_loses_a_node_ends_by_itself_with_the_same_digest(
    tmp_path, machines, started, unbroken_jobs, job, how
):
    unbroken, command = unbroken_jobs[job]
    out, log = tmp_path / "out", tmp_path / "log.txt"
    with started(log, *command, "--out", out, "--address", machines.address) as running:
        running.wait_until(lambda: len(list(out.glob("0*.json"))) > 1)
        worker = running.wait_until(lambda: machines.halted(SHARD))
        machines.lose_node_of(worker, how)
        running.ends_well()
    assert re.search("attempt failed .*: its worker died", log.read_text())
    assert_alike(out, unbroken)


# Training


@pytest.fixture(scope="module")
def train_command(stage1_command) -> Callable[..., list[object]]:
    """`train_command(out, *options)`: by two ranks, with a checkpoint every few steps."""
    more = ("--steps", 40, "--checkpoint-every", 5, "--validate-every", 20, "--ranks", 2)
    return lambda out, *options: stage1_command(out, *more, *options)


@pytest.fixture(scope="module")
def unbroken_training(tmp_path_factory, train_command, read_training):
    """What a training tells under which nothing died."""
    out = tmp_path_factory.mktemp("nodes") / "stage1"
    run(*train_command(out))
    return read_training(out)


def halted_ranks(training: Any, machines: Machines, out: Path) -> list[psutil.Process]:
    """Both ranks, halted soon after their first checkpoint; the first one tells where it begins."""
    training.wait_until((out / "checkpoints/step-000005/checkpoint.json").exists)
    ranks = machines.workers(RANK)
    for rank in ranks:
        rank.suspend()
    begins = re.compile(r"RayTrainWorker pid=(\d+).* begins step=0")
    told = training.wait_until(lambda: begins.search(training.log.read_text()))
    assert len(ranks) == 2
    return sorted(ranks, key=lambda rank: rank.pid != int(told[1]))


@pytest.mark.parametrize(("number", "how"), [(0, "killed"), (1, "silent")])
def test_a_training_that_loses_a_node_ends_by_itself_with_the_same_losses(
    tmp_path, machines, started, train_command, unbroken_training, read_training, number, how
):
    out = tmp_path / "stage1"
    command = train_command(out, "--address", machines.address)
    with started(tmp_path / "log.txt", *command) as training:
        ranks = halted_ranks(training, machines, out)
        machines.lose_node_of(ranks[number], how)
        ranks[1 - number].resume()
        training.ends_well()
    (ran,) = runs_of(out)
    assert ran["phases"][0]["failures"] > 0
    assert read_training(out) == unbroken_training
    assert not list(out.rglob(".tmp-*"))


# The head


def test_jobs_whose_driver_and_cluster_die_are_gone_on_with_on_another_one(
    tmp_path, machines, started, unbroken_jobs, train_command, unbroken_training, read_training
):
    """What worked for them on other machines may live on, and is let go when they begin again.

    tests/jobs/test_claims.py shows that it writes nothing more.
    """
    unbroken, ingest = unbroken_jobs["ingest"]
    raw, stage1, log = tmp_path / "raw", tmp_path / "stage1", tmp_path / "log.txt"
    ingest = [*ingest, "--out", raw]
    at = ("--address", machines.address)
    with started(log, *train_command(stage1), *at) as training:
        ranks = halted_ranks(training, machines, stage1)
        with started(log, *ingest, *at) as ingesting:
            ingesting.wait_until(lambda: len(list(raw.glob("0*.json"))) > 1)
            worker = ingesting.wait_until(lambda: machines.halted(SHARD))
            for job in (training, ingesting):
                job.kill()
            machines.lose_head()
    assert not (stage1 / "checkpoint.json").exists()
    assert not (raw / "dataset.json").exists()

    at = ("--address", machines.address)
    with started(log, *train_command(stage1), *at) as training:
        training.wait_until(lambda: len(runs_of(stage1)) == 2)
        for halted in (*ranks, worker):
            with contextlib.suppress(psutil.NoSuchProcess):  # its node may have ended it
                halted.resume()
        training.ends_well()
    with started(log, *ingest, *at) as ingesting:
        ingesting.ends_well()
    assert read_training(stage1) == unbroken_training
    assert len(runs_of(stage1)) == 2
    assert_alike(raw, unbroken)


def runs_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "run.json").read_text())["runs"]


# Memory and time


_GREEDY = """
import builtins, os, time

real_open = builtins.open
once = os.environ["GREEDY_ONCE"]


def open(file, mode="r", *arguments, **options):
    if mode == "wb" and str(file).startswith(os.environ["GREEDY_OUT"]) and not os.path.exists(once):
        real_open(once, "wb").close()
        held = [b"x" * (1 << 26) for _ in range(32)]
        time.sleep(60)
    return real_open(file, mode, *arguments, **options)


builtins.open = open
"""
"""Takes 2 GB at most while its first shard is written, if it is let."""


def test_a_job_whose_worker_takes_all_memory_once_ends_by_itself(
    tmp_path, machines, started, unbroken_jobs
):
    unbroken, command = unbroken_jobs["ingest"]
    out, log = tmp_path / "raw", tmp_path / "log.txt"
    (tmp_path / "path").mkdir()  # goes before all other places of modules
    (tmp_path / "path/sitecustomize.py").write_text(_GREEDY)
    environment = {
        "PYTHONPATH": f"{tmp_path / 'path'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "GREEDY_OUT": str(out),
        "GREEDY_ONCE": str(tmp_path / "once"),
        "RAY_memory_usage_threshold": str((get_used_memory() + 1.5e9) / get_system_memory()),
        "RAY_memory_monitor_refresh_ms": "50",
    }
    with machines.one_more(num_cpus=2, env_vars=environment):
        at = ("--address", machines.address, "--cpus-per-worker", 2)  # nowhere else
        with started(log, *command, "--out", out, *at) as running:
            running.ends_well()
    assert re.search("attempt failed .*: out of memory", log.read_text())
    assert_alike(out, unbroken)


def test_a_worker_that_hangs_is_killed_at_its_deadline_and_the_job_ends_by_itself(
    tmp_path, machines, started, unbroken_jobs
):
    unbroken, command = unbroken_jobs["ingest"]
    out, log = tmp_path / "raw", tmp_path / "log.txt"
    limits = ("--deadline-s", 8, "--shard-timeout-s", 7, "--total-timeout-s", 6)
    at = ("--address", machines.address)
    with started(log, *command, "--out", out, *limits, *at) as running:
        worker = running.wait_until(lambda: machines.halted(SHARD))
        running.ends_well()
    assert re.search("attempt failed .*: took longer than 8 s", log.read_text())
    assert_alike(out, unbroken)
    worker.wait(timeout=30)
