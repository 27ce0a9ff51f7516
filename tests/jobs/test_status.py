"""What `viaduct status` says of datasets, indexes and trainings in all their states."""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import status
from jobs.build import build
from jobs.cli import main
from jobs.run_log import RunLog
from jobs.shards import PoolConfig, Task
from pipeline import claim
from pipeline.accounting import Account
from pipeline.claim import claimed
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.schemas import HASHES, ROWS_PER_BATCH
from pipeline.shard import commit_table, new_shard
from pipeline.storage import Folder

TASKS = [Task(number, rows=3) for number in range(5)]


@pytest.fixture
def told(capsys):
    """What it prints: lines of text, or with --json what stands in them."""

    def told(*arguments: object):
        capsys.readouterr()
        assert main(["status", *map(str, arguments)]) == 0
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in arguments else out.splitlines()

    return told


def begin(folder: Folder) -> Draft:
    return Draft.begin(folder, "hashes", HASHES, Lineage("test", {}))


def commit(folder: Folder, number: int) -> None:
    """A shard of three rows, of which one was dropped."""
    uids = [bytes([number, row]) * 8 for row in range(2)]
    table = pa.Table.from_pylist([{"uid": uid} for uid in uids], schema=HASHES)
    account = Account(3, 2, {"failed:http_404": 1})
    commit_table(folder, number, table, ROWS_PER_BATCH["hashes"], pictures=account)


def set_time(home: Path, number: int, began: float, seconds: float) -> None:
    """When a shard was committed, after its phase began."""
    os.utime(home / f"{number:05d}.json", (began + seconds, began + seconds))


@pytest.fixture
def at_work(tmp_path):
    """A job at work on five shards: one was there before, three were made in 10, 20 and 40 s."""
    folder = Folder.at(tmp_path / "made")
    begin(folder)
    commit(folder, 0)
    with claimed(folder, "viaduct test") as its:
        log = RunLog(its)
        with log.phase("hash", folder, shards=5, shards_found=1) as phase:
            for number in (1, 2, 3):
                commit(folder, number)
            began = datetime.fromisoformat(phase["began"]).timestamp()
            for number, seconds in ((0, -3600), (1, 10), (2, 20), (3, 40)):
                set_time(tmp_path / "made", number, began, seconds)
            yield folder


def test_a_job_at_work(at_work, told):
    (facts,) = told(at_work.path, "--json")
    assert (facts["kind"], facts["state"]) == ("hashes", "running")
    assert facts["running"]["command"] == "viaduct test"
    assert facts["running"]["process"] == os.getpid()
    shards = facts["shards"]
    assert (shards["part"], shards["done"], shards["total"]) == ("hash", 4, 5)
    assert shards["per_s"] == pytest.approx(3 / 40)
    assert shards["pictures_per_s"] == pytest.approx(9 / 40)
    assert shards["left_s"] == pytest.approx(40 / 3)
    assert facts["pictures"] == {"in": 12, "kept": 8, "dropped": {"failed:http_404": 4}}
    first, second, *others = told(at_work.path)
    assert first.startswith(f"made: hashes, worked on by viaduct test, process {os.getpid()} on ")
    assert second.startswith("  hash: 4 of 5 shards, 0.2 pictures/s, 13.3 s to go, the last one ")
    assert others == ["  pictures: 8 of 12 kept", "    failed:http_404 4"]


_WORK = """
import sys
from jobs.run_log import RunLog
from pipeline.claim import claimed
from pipeline.storage import Folder
folder = Folder.at(sys.argv[1])
with claimed(folder, "viaduct test") as its, RunLog(its).phase("hash", folder, shards=5):
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_job_that_is_killed_midway(tmp_path, told):
    folder = Folder.at(tmp_path)
    begin(folder)
    command = [sys.executable, "-c", _WORK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout.readline() == b"begun\n"
        for number in (0, 4):
            commit(folder, number)
        (facts,) = told(tmp_path, "--json")
        assert (facts["state"], facts["running"]["process"]) == ("running", job.pid)
        job.kill()
    (facts,) = told(tmp_path, "--json")
    assert (facts["state"], facts["running"], facts["seconds"]) == ("stopped", None, None)
    assert (facts["shards"]["done"], facts["shards"]["total"]) == (2, 5)
    assert (facts["shards"]["pictures_per_s"], facts["shards"]["left_s"]) == (None, None)
    first, second, *_ = told(tmp_path)
    again = f"nobody works on it; run the same command again to go on: -c {tmp_path}"
    assert first.endswith(again)
    assert second == "  hash: 2 of 5 shards"


@pytest.mark.usefixtures("ray_session")
def test_shards_set_aside_are_named_with_their_reasons(tmp_path, told):
    draft = begin(Folder.at(tmp_path))
    folder = draft.folder
    is_sound = tmp_path / "sound"

    def make():
        def work(task):
            with new_shard(folder, task.number) as shard:
                shard.open(HASHES, ROWS_PER_BATCH["hashes"])
                if task.number == 3 and not is_sound.exists():
                    raise ValueError("no such thing")
                return shard.commit(pictures=Account(0, 0))

        return work

    def fill() -> None:
        with claimed(folder, "viaduct test") as its:
            log = RunLog(its)
            pool = PoolConfig(workers=1, attempts=1)
            build(draft, TASKS, make, pool, log, phase="hash")

    with pytest.raises(Exception, match="1 shards set aside"):
        fill()
    (facts,) = told(tmp_path, "--json")
    assert facts["state"] == "stopped"
    assert (facts["shards"]["done"], facts["shards"]["total"]) == (4, 5)
    assert facts["shards"]["left_s"] is None
    assert facts["set_aside"] == {"00003": "ValueError: no such thing, 1 attempts"}
    lines = told(tmp_path)
    assert "nobody works on it; run the same command again to go on: " in lines[0]
    assert lines[-1] == "  shard 00003 was set aside: ValueError: no such thing, 1 attempts"
    is_sound.touch()
    fill()
    (facts,) = told(tmp_path, "--json")
    assert (facts["state"], facts["set_aside"]) == ("finished", {})


def test_all_that_lies_below_a_folder(data, told):
    # Of 72 pictures every seventh is like the one before it.
    features, pairs, raw = told(data, "--json")
    assert [one["kind"] for one in (features, pairs, raw)] == ["features", "pairs", "raw"]
    assert {one["state"] for one in (features, pairs, raw)} == {"finished"}
    assert raw["pictures"] == {"in": 72, "kept": 72, "dropped": {}}
    assert pairs["pictures"] == {"in": 72, "kept": 62, "dropped": {"duplicate": 10}}
    assert (features["shards"]["done"], features["shards"]["total"]) == (4, 4)
    lines = told(data)
    assert [line.split(": ")[0] for line in lines if not line.startswith(" ")] == [
        *("features", "pairs", "raw")
    ]
    assert "    duplicate 10" in lines


def test_a_finished_training(unbroken, told):
    (facts,) = told(unbroken, "--json")
    steps = facts["steps"]
    assert (facts["kind"], facts["state"], facts["running"]) == ("stage 1", "finished", None)
    assert (steps["done"], steps["total"], steps["checkpoint"]) == (12, 12, 12)
    assert steps["train"]["step"] == steps["validation"]["step"] == 12
    assert steps["step_s"] == pytest.approx(8 / steps["train"]["pairs_per_s"])
    first, second, *others = told(unbroken)
    assert first.startswith("stage1: stage 1, finished; its last run took ")
    assert second.startswith("  12 of 12 steps, ")
    assert " waiting for data" in second
    assert others[0].startswith("  train, step 12: ")
    assert f" loss={steps['train']['loss']:.4g} " in f"{others[0]} "
    assert others[-1] == f"  best checkpoint: step {steps['best']}"


def test_a_training_that_was_stopped(tmp_path, stage1_command, rank_here, stop_at, told):
    stop_at(6)
    with rank_here():
        assert main([str(word) for word in stage1_command(tmp_path / "stage1")]) == 130
    (facts,) = told(tmp_path / "stage1", "--json")
    assert facts["state"] == "stopped"
    steps = facts["steps"]
    assert (steps["done"], steps["total"], steps["checkpoint"]) == (6, 12, 4)
    assert steps["left_s"] is None
    lines = told(tmp_path / "stage1")
    assert "  goes on from step 4" in lines
    assert lines[1].startswith("  6 of 12 steps, ")


def test_an_index_and_one_that_is_not_finished(searchable, tmp_path, told):
    (facts,) = told(searchable, "--json")
    assert (facts["kind"], facts["state"]) == ("index", "finished")
    assert facts["pictures"]["kept"] == 62
    assert (facts["shards"]["done"], facts["shards"]["total"]) == (1, 1)
    shutil.copytree(searchable, tmp_path / "index")
    Draft.begin(Folder.at(tmp_path / "index/added-00001"), "index", HASHES, Lineage("index", {}))
    (facts,) = told(tmp_path, "--json")
    assert facts["state"] == "finished"
    added = facts["additions"]["added-00001"]
    assert (added["kind"], added["state"], added["shards"]["done"]) == ("index", "stopped", 0)
    assert told(tmp_path)[-2].startswith("  added-00001: index, nobody works on it; run the same ")


def test_a_dataset_on_an_object_store(bucket, told, monkeypatch):
    for name, value in {"RENEW_S": 0.1, "WATCH_S": 1.5, "LOOK_S": 0.05, "SETTLE_S": 0.2}.items():
        monkeypatch.setattr(claim, name, value)
    _, uri = bucket
    folder = Folder.at(uri("made"))
    begin(folder)
    for number in (0, 1):
        commit(folder, number)
    with claimed(folder, "viaduct test") as its, RunLog(its).phase("hash", folder):
        (facts,) = told(uri("made"), "--json")
        assert facts["state"] == "running"
        assert facts["running"]["command"] == "viaduct test"
        assert (facts["shards"]["done"], facts["shards"]["total"]) == (2, None)
    (facts,) = told(uri("made"), "--json")
    assert (facts["state"], facts["pictures"]["in"]) == ("stopped", 6)


def test_it_is_watched_until_it_is_finished(tmp_path, told, monkeypatch):
    draft = begin(Folder.at(tmp_path))
    commit(draft.folder, 0)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        draft.publish(draft.committed().values())

    monkeypatch.setattr(status.time, "sleep", sleep)
    lines = [line for line in told(tmp_path, "--watch", 7) if not line.startswith(" ")]
    assert slept == [7]
    assert "nobody works on it" in lines[0]
    assert lines[1].endswith(": hashes, finished")


def test_wrong_input_is_one_line(tmp_path, refused):
    assert "nowhere: no such folder" in refused("status", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    said = refused("status", tmp_path / "empty")
    assert "empty: no dataset, index or training is there" in said
    assert "watch: 0 is not positive" in refused("status", tmp_path, "--watch", 0)
    (tmp_path / ".draft.json").write_text("{}")
    assert ".draft.json: field missing or wrong: 'kind'" in refused("status", tmp_path)
    (tmp_path / "run.json").write_text('{"runs": [{}]}')
    assert "run.json: field missing or wrong: 'phases'" in refused("status", tmp_path)
