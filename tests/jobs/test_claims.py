"""A second job on an object store is refused; one that was halted or cut off writes no more."""

import json
import time

import pytest

from jobs import ingest
from jobs.cli import main
from pipeline import claim
from pipeline.claim import LEASE, LOCK, claimed
from pipeline.storage import Folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"RENEW_S": 0.1, "WATCH_S": 1.5, "LOOK_S": 0.05, "SETTLE_S": 0.2}.items():
        monkeypatch.setattr(claim, name, value)


def take_over(folder: Folder) -> None:
    """What another job does that believes this one to be dead."""
    lease = json.loads(folder.read(LEASE))
    while json.loads(folder.read(LEASE))["token"] != "another":  # a renewal may overwrite it
        folder.publish_json(LEASE, lease | {"token": "another", "host": "elsewhere"})
        time.sleep(0.3)


def wait_for_checkpoint(folder: Folder) -> None:
    """Until a training's first one is whole: it is written beside the steps that follow."""
    deadline = time.monotonic() + 60
    while "best.json" not in (folder / "checkpoints").entries():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_job_is_refused_in_one_line_that_names_the_first(bucket, make_folder, refused):
    _, uri = bucket
    command = ("ingest", make_folder(4), "--out", uri("twice"))
    with claimed(Folder.at(uri("twice")), "viaduct ingest"):
        said = refused(*command)
    assert "bucket/twice: another job is writing here (viaduct ingest, process" in said
    assert LEASE not in Folder.at(uri("twice")).files()


def test_a_job_that_lost_its_lease_is_stopped_midway(bucket, make_folder, refused, monkeypatch):
    _, uri = bucket
    folder = Folder.at(uri("halted"))

    def halted(*_):
        take_over(folder)
        time.sleep(100)

    monkeypatch.setattr(ingest, "_slices", halted)
    said = refused("ingest", make_folder(4), "--out", uri("halted"))
    assert "bucket/halted: was taken over by another job (viaduct ingest, process" in said
    assert "on elsewhere, since" in said
    (run,) = folder.read_json("run.json")["runs"]
    assert run["ended"] is None  # not even that was written
    assert folder.size("dataset.json") is None
    assert folder.read_json(LEASE)["host"] == "elsewhere"


@pytest.mark.usefixtures("ray_session")
def test_a_job_that_lost_its_lease_publishes_nothing(bucket, make_folder, refused, monkeypatch):
    _, uri = bucket
    folder, build = Folder.at(uri("late")), ingest.build
    monkeypatch.setattr(claim, "RENEW_S", 600)  # so that it does not hear of it before

    def built(*arguments, **options):
        take_over(folder)
        return build(*arguments, **options)

    monkeypatch.setattr(ingest, "build", built)
    command = ("ingest", make_folder(4), "--out", uri("late"))
    assert "bucket/late: was taken over by another job" in refused(*command)
    assert folder.size("dataset.json") is None
    monkeypatch.undo()
    monkeypatch.setattr(claim, "WATCH_S", 0.5)  # the other one died
    assert main([str(word) for word in command]) == 0
    assert folder.size("dataset.json") is not None


@pytest.mark.usefixtures("ray_session")
def test_a_training_that_lost_its_lease_writes_no_checkpoint(
    bucket, stage1_command, rank_here, disturb, refused, monkeypatch
):
    _, uri = bucket
    folder = Folder.at(uri("stage1"))
    monkeypatch.setattr(claim, "RENEW_S", 600)

    def lose() -> None:
        wait_for_checkpoint(folder)
        take_over(folder)

    disturb(5, lose)
    with rank_here():
        assert "bucket/stage1: was taken over" in refused(*stage1_command(uri("stage1")))
    assert (folder / "checkpoints").entries() == ["best.json", "step-000004"]


@pytest.mark.usefixtures("ray_session")
def test_a_rank_that_outlives_its_driver_writes_nothing_more_into_a_local_folder(
    tmp_path, stage1_command, rank_here, disturb, refused, steps_of, metrics
):
    """On another machine, where it is told neither that its driver died nor that another began."""
    out = tmp_path / "stage1"
    lock = out / LOCK

    def lose() -> None:
        wait_for_checkpoint(Folder.at(out))
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"token": "another"}))

    disturb(5, lose)
    with rank_here():
        assert "stage1: was taken over by another job" in refused(*stage1_command(out))
    assert steps_of(out) == ["step-000004"]
    assert [line["step"] for line in metrics(out) if line["split"] == "train"] == [1, 2, 3, 4, 5]
