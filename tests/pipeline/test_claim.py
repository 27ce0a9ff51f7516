import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from pipeline import claim as claim_module
from pipeline.claim import LEASE, Claim, Lost, claimed, holder_of
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage import Folder

QUICK = {"RENEW_S": 0.1, "WATCH_S": 1.5, "LOOK_S": 0.05, "SETTLE_S": 0.3}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setattr(claim_module, name, value)


@pytest.fixture
def stored(bucket, request):
    """A folder of this test on an object store, with its URI."""
    _, options = bucket
    uri = f"s3://tables/{request.node.name}?{options}"
    return Folder.at(uri), uri


_HOLD = f"""
import sys
from pipeline import claim
for name, value in {QUICK!r}.items():
    setattr(claim, name, value)
from pipeline.storage import Folder
with claim.claimed(Folder.at(sys.argv[1]), "viaduct ingest"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(location: object) -> subprocess.Popen[bytes]:
    """A process that has claimed a folder."""
    command = [sys.executable, "-c", _HOLD, str(location)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    return holder


def check_refused(folder: Folder, first: int) -> None:
    named = rf"viaduct ingest, process {first} on {re.escape(socket.gethostname())}, since 2\S+T"
    refused = pytest.raises(ConfigError, match=rf": another job is writing here \({named}")
    with refused, claimed(folder, "viaduct curate"):
        pass


def write_lease(folder: Folder, token: str, renewed: int = 0) -> None:
    """The lease of another job."""
    holder = {"command": "viaduct x", "host": "far", "process": 7, "since": "2026-01-01T00:00:00"}
    folder.publish_json(LEASE, {"token": token, "renewed": renewed, **holder})


def test_in_a_local_folder_a_second_job_is_refused_until_the_first_is_killed(tmp_path):
    folder = Folder.at(tmp_path)
    assert holder_of(folder) is None
    with hold(tmp_path) as first:
        check_refused(folder, first.pid)
        assert (holder_of(folder).command, holder_of(folder).process) == (
            "viaduct ingest",
            first.pid,
        )
        first.kill()
    assert holder_of(folder) is None
    with claimed(folder, "viaduct curate") as claim:
        claim.check()
        assert holder_of(folder).process == os.getpid()
    assert holder_of(folder) is None


def test_what_outlives_its_holder_finds_its_local_folder_taken(tmp_path):
    """Such as a rank on another machine, whose driver died."""
    folder = Folder.at(tmp_path)
    with claimed(folder, "viaduct train-stage1") as first:
        first.check()
    first.check()
    taken = pytest.raises(Lost, match=r"was taken over by another job \(viaduct train-stage1, pr")
    with claimed(folder, "viaduct train-stage1") as second, taken:
        second.check()
        first.check()
    with taken:
        first.check()
    folder.remove_file(".lock")
    with pytest.raises(Lost, match=r": \.lock was removed while this job was running"):
        second.check()


def test_on_an_object_store_a_second_job_is_refused_until_the_first_is_killed(stored):
    folder, uri = stored
    assert holder_of(folder) is None
    with hold(uri) as first:
        check_refused(folder, first.pid)
        assert holder_of(folder).process == first.pid
        first.kill()
        first.wait()
        assert folder.files() == [LEASE]
        assert holder_of(folder) is None
    with claimed(folder, "viaduct curate") as claim:
        claim.check()
        assert holder_of(folder).command == "viaduct curate"
    assert folder.files() == []


def test_a_lease_that_is_given_back_while_it_is_watched_is_free_at_once(stored, monkeypatch):
    folder, _ = stored
    monkeypatch.setattr(claim_module, "WATCH_S", 600)
    write_lease(folder, "another")
    threading.Timer(0.3, folder.remove_file, (LEASE,)).start()
    with claimed(folder, "viaduct curate"):
        pass


def test_a_lease_that_is_replaced_or_removed_while_it_is_read_is_read_again(stored, monkeypatch):
    """Its size is that of the one before, or it is not found where it was just seen."""
    folder, _ = stored
    write_lease(folder, "another")
    read = Folder.read
    faults = ["cut", "gone", "cut"]

    def unlucky(self: Folder, name: str) -> bytes:
        if not faults:
            return read(self, name)
        if faults.pop() == "gone":
            raise OSError("AWS Error INTERNAL_FAILURE during GetObject operation")
        return read(self, name)[:-4]

    monkeypatch.setattr(Folder, "read", unlucky)
    with pytest.raises(Lost):
        Claim(folder, "mine").check()
    assert not faults


def test_of_those_that_take_over_at_once_one_goes_on(stored):
    folder, _ = stored
    write_lease(folder, "of a dead job")
    start, over, refused = threading.Barrier(4), threading.Event(), []
    won = []

    def job() -> None:
        start.wait()
        try:
            with claimed(folder, "viaduct curate") as claim:
                over.wait(60)
                claim.check()
                won.append(claim.token)
        except ConfigError as error:
            refused.append(str(error))
        if len(refused) == 3:
            over.set()

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 3
    assert folder.files() == []


def test_who_lost_its_lease_is_interrupted_and_leaves_the_lease_to_the_other(stored):
    folder, _ = stored
    text = r"taken over by another job \(viaduct x, process 7 on far, since 2026\S+\) while this"

    def job() -> None:
        with claimed(folder, "viaduct curate"):
            while True:  # a renewal may overwrite it
                write_lease(folder, "another")
                time.sleep(1)

    with pytest.raises(Lost, match=text):
        job()
    assert json.loads(folder.read(LEASE))["token"] == "another"
    with pytest.raises(Lost, match=text):
        Claim(folder, "mine").check()


def test_who_lost_its_lease_finds_out_before_it_renews_it(stored, monkeypatch):
    monkeypatch.setattr(claim_module, "RENEW_S", 600)
    folder, _ = stored
    with claimed(folder, "viaduct curate") as claim:
        claim.check()
        folder.remove_file(LEASE)
        with pytest.raises(Lost, match="was removed while"):
            claim.check()
    assert folder.files() == []


def test_ctrl_c_stays_ctrl_c_and_gives_the_lease_back(stored):
    folder, _ = stored
    with pytest.raises(KeyboardInterrupt), claimed(folder, "viaduct curate"):
        raise KeyboardInterrupt
    assert folder.files() == []


def test_a_store_that_does_not_answer_for_a_moment_costs_nothing(stored, monkeypatch, caplog):
    folder, _ = stored
    write, fails = claim_module._Lease.write, iter([True, True])

    def failing(lease, folder):
        if lease.renewed and next(fails, False):
            raise OSError("no answer")
        write(lease, folder)

    monkeypatch.setattr(claim_module._Lease, "write", failing)
    with claimed(folder, "viaduct curate"):
        while json.loads(folder.read(LEASE))["renewed"] < 4:
            time.sleep(0.05)
    assert caplog.text.count("lease not renewed: no answer") == 2
    assert folder.files() == []


def test_a_damaged_lease_or_lock_is_named(stored, tmp_path):
    folder, _ = stored
    folder.publish_json(LEASE, {"token": "x"})
    with pytest.raises(DatasetError, match=f"{LEASE}: field missing or wrong: 'renewed'"):
        holder_of(folder)
    local = Folder.at(tmp_path)
    with (
        local.locked(".lock", note="x"),
        pytest.raises(DatasetError, match=r"\.lock: field missing"),
    ):
        holder_of(local)
