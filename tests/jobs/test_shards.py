"""The runner: every shard is made or set aside with a reason, whatever becomes of its worker."""

import os
import signal
import time

import pytest
import ray
from ray._private.internal_api import node_stats

from jobs.shards import Made, PoolConfig, Task, run_shards
from pipeline.accounting import Account
from pipeline.errors import ConfigError, DatasetError, ViaductError
from pipeline.shard import FileEntry, ShardRecord

pytestmark = pytest.mark.usefixtures("ray_session")

POOL = PoolConfig(workers=2, cpus_per_worker=0.5, attempts=2)


def tasks(count: int) -> list[Task]:
    return [Task(number, 10) for number in range(count)]


def worker(act):
    """A worker that calls `act` with the shard's number and returns a record of it.

    What a test defines within itself travels to the worker by value.
    """

    def make():
        def work(task: Task) -> ShardRecord:
            act(task.number)
            entry = FileEntry(f"{task.number:05d}.arrow", task.rows, 1, "0" * 64)
            return ShardRecord(task.number, entry, "0" * 64, Account.all_kept(task.rows))

        return work

    return make


def test_all_shards_are_made_and_reported():
    seen = []
    outcome = run_shards(worker(lambda number: None), tasks(20), POOL, seen.append)
    assert sorted(outcome.done) == list(range(20))
    assert sorted(task.number for task in seen) == list(range(20))
    assert all(record.number == number for number, record in outcome.done.items())
    assert not outcome.set_aside
    assert outcome.peak_rss_bytes > 1 << 20


def test_what_workers_tell_of_their_shards_is_added_up(tmp_path):
    record = worker(lambda number: None)()

    def make():
        def work(task: Task) -> Made:
            if task.number == 2 and not (tmp_path / "failed").exists():
                (tmp_path / "failed").touch()
                raise ValueError("once")
            return Made(record(task), {"texts": task.number, f"only_{task.number % 2}": 0.5})

        return work

    outcome = run_shards(make, tasks(5), POOL)
    assert sorted(outcome.done) == list(range(5))
    assert outcome.sums == {"texts": 0 + 1 + 2 + 3 + 4, "only_0": 1.5, "only_1": 1.0}


@pytest.mark.parametrize(
    ("pool", "device", "cpus", "gpus"),
    [
        (PoolConfig(), "cpu", 3.0, 0.0),
        (PoolConfig(cpus_per_worker=4), "cpu", 4.0, 0.0),
        (PoolConfig(cpus_per_worker=0, gpus_per_worker=1), "cpu", 0.0, 1.0),
        (PoolConfig(), "cuda", 0.0, 1.0),
        (PoolConfig(gpus_per_worker=0.25, cpus_per_worker=2), "cuda", 2.0, 0.25),
    ],
)
def test_workers_have_what_they_compute_with(pool, device, cpus, gpus):
    each = pool.on(device, threads=3).bundle
    assert (each.get("CPU", 0), each.get("GPU", 0)) == (cpus, gpus)
    assert PoolConfig().bundle == {"CPU": 1.0}
    assert PoolConfig(memory_gb_per_worker=1.5).bundle == {"CPU": 1.0, "memory": 1.5e9}


def test_results_leave_the_object_store_when_they_were_taken():
    """Ray frees what nobody refers to once a second."""
    [node] = ray.nodes()
    where = node["NodeManagerAddress"], node["NodeManagerPort"]

    def stored() -> int:
        return node_stats(*where, include_memory_info=False).store_stats.object_store_bytes_used

    before, seen = stored(), []
    outcome = run_shards(
        lambda: lambda task: bytes(1 << 20), tasks(6), POOL, lambda task: seen.append(stored())
    )
    assert max(seen) >= before + (1 << 20)
    deadline = time.monotonic() + 60
    while stored() >= before + (1 << 20):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(outcome.done) == 6  # which are there still


def test_no_shards_are_no_work():
    assert run_shards(worker(lambda number: None), [], POOL).done == {}


def test_a_shard_that_kills_its_worker_each_time_is_set_aside_and_the_rest_completes():
    def act(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    outcome = run_shards(worker(act), tasks(8), POOL)
    assert sorted(outcome.done) == [0, 1, 2, 4, 5, 6, 7]
    assert list(outcome.set_aside) == [3]
    assert "worker died" in outcome.set_aside[3]
    assert "2 attempts" in outcome.set_aside[3]
    assert not outcome.damaged


def test_a_worker_killed_once_costs_one_attempt(tmp_path):
    def act(number):
        marker = tmp_path / str(number)
        if number == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    outcome = run_shards(worker(act), tasks(5), POOL)
    assert sorted(outcome.done) == list(range(5))
    assert outcome.attempts == {2: 1}


def test_a_hung_shard_is_set_aside_after_its_deadlines():
    def act(number):
        if number == 1:
            time.sleep(600)

    pool = PoolConfig(workers=2, cpus_per_worker=0.5, attempts=2, deadline_s=2)
    begun = time.monotonic()
    outcome = run_shards(worker(act), tasks(6), pool)
    assert sorted(outcome.done) == [0, 2, 3, 4, 5]
    assert outcome.set_aside == {1: "took longer than 2 s, 2 attempts"}
    assert time.monotonic() - begun < 120


def test_an_exception_is_tried_again_and_then_named(tmp_path):
    def act(number):
        marker = tmp_path / str(number)
        if number == 0 or (number == 4 and not marker.exists()):
            marker.touch()
            raise ValueError(f"no luck with {number}")

    outcome = run_shards(worker(act), tasks(6), POOL)
    assert sorted(outcome.done) == [1, 2, 3, 4, 5]
    assert outcome.set_aside == {0: "ValueError: no luck with 0, 2 attempts"}
    assert outcome.attempts == {0: 2, 4: 1}


def test_damaged_input_is_set_aside_at_once():
    def act(number):
        if number == 1:
            raise DatasetError("00001.arrow: damaged")

    outcome = run_shards(worker(act), tasks(3), POOL)
    assert outcome.set_aside == {1: "00001.arrow: damaged"}
    assert outcome.damaged
    assert not outcome.attempts


def test_what_the_user_must_mend_stops_the_run():
    def act(number):
        if number == 1:
            raise ConfigError("the disk is full")

    with pytest.raises(ConfigError, match="the disk is full"):
        run_shards(worker(act), tasks(50), POOL)


def test_workers_that_do_not_start_end_the_run():
    def make():
        raise RuntimeError("no such library")

    with pytest.raises(ViaductError, match="workers do not start: RuntimeError: no such library"):
        run_shards(make, tasks(3), POOL)


def test_a_configuration_error_of_a_starting_worker_reaches_the_user():
    def make():
        raise ConfigError("encoder: unknown")

    with pytest.raises(ConfigError, match="encoder: unknown"):
        run_shards(make, tasks(3), POOL)


def test_a_worker_too_large_for_the_cluster_is_an_error_and_no_wait():
    with pytest.raises(ConfigError, match="cpus_per_worker: 64, but Ray has 2"):
        run_shards(worker(lambda number: None), tasks(3), PoolConfig(cpus_per_worker=64))
    with pytest.raises(ConfigError, match="memory_gb_per_worker: 1e\\+06, but Ray has "):
        run_shards(worker(lambda number: None), tasks(3), PoolConfig(memory_gb_per_worker=1e6))
    with pytest.raises(ConfigError, match=r"min_workers: 3 x 1 CPU do not fit .* nodes, only 2"):
        run_shards(worker(lambda number: None), tasks(3), PoolConfig(min_workers=3))


def test_workers_reserve_memory():
    """Which shows a moment later in what the cluster has left."""

    def act(number):
        while ray.available_resources()["memory"] > ray.cluster_resources()["memory"] - 5e8:
            time.sleep(0.1)

    pool = PoolConfig(workers=1, cpus_per_worker=0.5, memory_gb_per_worker=0.5, deadline_s=30)
    assert sorted(run_shards(worker(act), tasks(2), pool).done) == [0, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempts", 0),
        ("deadline_s", 0),
        ("workers", 0),
        ("min_workers", 0),
        ("cpus_per_worker", -1),
        ("memory_gb_per_worker", -1),
    ],
)
def test_impossible_pools_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        PoolConfig(**{field: value})


def test_the_fewest_workers_are_no_more_than_the_most():
    with pytest.raises(ConfigError, match="min_workers: 3 is above workers=2"):
        PoolConfig(workers=2, min_workers=3)


TWO = PoolConfig(workers=1, cpus_per_worker=0.5, attempts=2, deadline_s=4)


def test_a_worker_prepares_a_shard_while_it_ends_another(tmp_path):
    """Each shard but the last of a single worker waits until the next one has begun."""

    def act(number):
        (tmp_path / str(number)).touch()
        for _ in range(200 if number < 3 else 0):
            if (tmp_path / str(number + 1)).exists():
                return
            time.sleep(0.05)
        assert number >= 3, "no other shard has begun"

    pool = PoolConfig(workers=1, cpus_per_worker=0.5, attempts=1)
    outcome = run_shards(worker(act), tasks(5), pool, at_once=2)
    assert sorted(outcome.done) == list(range(5))


def test_the_last_shards_wait_for_workers_that_have_none(tmp_path):
    """Two workers and three shards: the third goes to the one that is done first."""

    def act(number):
        (tmp_path / f"{number}-{os.getpid()}").touch()
        time.sleep(4 if number == 0 else 0.5)

    pool = PoolConfig(workers=2, cpus_per_worker=0.5)
    run_shards(worker(act), tasks(3), pool, at_once=2)
    by_shard = dict(path.name.split("-") for path in tmp_path.iterdir())
    assert by_shard["2"] == by_shard["1"] != by_shard["0"]


def test_a_shard_that_waits_for_one_that_hangs_pays_nothing(tmp_path):
    """Nor does its own time run meanwhile."""

    def act(number):
        (tmp_path / str(number)).touch()
        if number == 0:
            time.sleep(600)
        elif number == 1 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            time.sleep(600)  # behind the hung one

    outcome = run_shards(worker(act), tasks(4), TWO, at_once=2)
    assert sorted(outcome.done) == [1, 2, 3]
    assert outcome.set_aside == {0: "took longer than 4 s, 2 attempts"}
    assert outcome.attempts == {0: 2}


def test_shards_share_the_death_of_their_worker(tmp_path):
    """The innocent one is made in the end, the guilty one is set aside."""

    def act(number):
        if number == 0:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1 if number == 1 and not (tmp_path / "again").exists() else 0)
        (tmp_path / "again").touch()

    outcome = run_shards(worker(act), tasks(3), TWO, at_once=2)
    assert sorted(outcome.done) == [1, 2]
    assert list(outcome.set_aside) == [0]
    assert outcome.attempts[0] > outcome.attempts[1]
