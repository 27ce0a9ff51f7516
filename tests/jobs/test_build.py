"""A dataset that is filled shard by shard ends whole, or says which shards it lacks."""

import os
import signal

import pyarrow as pa
import pytest

from jobs.build import Incomplete, build
from jobs.cli import _exit_code
from jobs.run_log import RunLog
from jobs.shards import PoolConfig, Task
from pipeline.accounting import Account
from pipeline.claim import claimed
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.schemas import HASHES, ROWS_PER_BATCH
from pipeline.shard import new_shard
from pipeline.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_session")

POOL = PoolConfig(workers=2, cpus_per_worker=0.5, attempts=2)
TASKS = [Task(number, 3) for number in range(5)]


def fill(home, poison=lambda number: None, pool: PoolConfig = POOL) -> Dataset:
    """A dataset of five tiny shards; `poison` is called in the worker before each is committed."""
    draft = Draft.begin(Folder.at(home), "hashes", HASHES, Lineage("test", {}))
    folder, schema, rows_per_batch = draft.folder, HASHES, ROWS_PER_BATCH["hashes"]

    def make():
        def work(task):
            uids = [bytes([task.number, row]) * 8 for row in range(task.rows)]
            table = pa.Table.from_pylist([{"uid": uid} for uid in uids], schema=schema)
            with new_shard(folder, task.number) as shard:
                shard.open(schema, rows_per_batch).write(table)
                poison(task.number)
                return shard.commit(pictures=Account.all_kept(task.rows))

        return work

    with claimed(folder, "viaduct test") as claim:
        return build(draft, TASKS, make, pool, RunLog(claim), phase="fill")


def test_a_poisoned_shard_is_named_the_rest_is_committed_and_a_sound_run_ends_whole(tmp_path):
    def poison(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(Incomplete, match=r"1 shards set aside, 4 committed: 00003 \(.*died") as no:
        fill(tmp_path / "a", poison)
    assert _exit_code(no.value) == 3
    assert sorted(p.name for p in (tmp_path / "a").glob("*.arrow")) == [
        f"0000{number}.arrow" for number in (0, 1, 2, 4)
    ]
    with pytest.raises(ConfigError, match="not finished"):
        Dataset.open(str(tmp_path / "a"))
    whole = fill(tmp_path / "b")
    assert fill(tmp_path / "a").digest == whole.digest
    # The killed attempts left no half-written files behind.
    assert not list((tmp_path / "a").glob(".tmp-*"))


def test_a_dataset_published_without_a_shard_stays_so(tmp_path):
    def poison(number):
        if number == 3:
            raise ValueError("no")

    lenient = PoolConfig(workers=1, attempts=1, publish_incomplete=True)
    dataset = fill(tmp_path, poison, lenient)
    assert dataset.manifest.set_aside == {3: 3}
    assert dataset.manifest.pictures == Account(15, 12, {"set_aside": 3})
    assert fill(tmp_path).digest == dataset.digest


def test_only_what_is_missing_is_made_again(tmp_path):
    digest = fill(tmp_path).digest
    (tmp_path / "00002.arrow").unlink()
    made = tmp_path / "made"
    made.mkdir()
    assert fill(tmp_path, lambda number: (made / str(number)).touch()).digest == digest
    assert [path.name for path in made.iterdir()] == ["2"]


def test_a_full_disk_ends_the_run_and_keeps_what_was_committed(tmp_path):
    def poison(number):
        if number == 4:
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="the disk is full; what was committed stays"):
        fill(tmp_path, poison, PoolConfig(workers=1))
    assert len(list(tmp_path.glob("0*.json"))) == 4
    assert fill(tmp_path).num_rows == 15
