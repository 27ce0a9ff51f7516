"""Folders: local paths and object stores behave alike, and files appear whole."""

import fcntl
import os
import subprocess
import sys
import threading

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from pipeline.accounting import Account
from pipeline.errors import ConfigError
from pipeline.shard import new_shard, read_record
from pipeline.storage import TEMPORARY, Folder, Locked, below


@pytest.fixture(params=["local", "object store"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder.at(tmp_path / "data")
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store.clear()
    return Folder(pafs.PyFileSystem(pafs.FSSpecHandler(memory)), "/bucket/data")


def test_a_file_is_published_read_replaced_and_removed(folder):
    assert folder.size("a.json") is None
    assert folder.read_json("a.json") is None
    folder.create()
    folder.publish_json("a.json", {"x": "\u00e4"})
    assert folder.read_json("a.json") == {"x": "\u00e4"}
    folder.publish("a.json", b"2")
    assert folder.read("a.json") == b"2"
    assert folder.files() == ["a.json"]
    folder.remove_file("a.json")
    assert folder.files() == []


def test_a_shard_is_committed_and_read(folder):
    schema = pa.schema([("uid", pa.binary(16))])
    table = pa.table({"uid": [bytes([n]) * 16 for n in range(10)]}, schema=schema)
    with new_shard(folder, 0) as shard:
        shard.open(schema, 4).write(table)
        record = shard.commit(pictures=Account.all_kept(10))
    assert read_record(folder, 0) == record
    assert folder.open_arrow(record.entry.file).read_all().equals(table)
    assert folder.digest(record.entry.file) == record.entry.digest


def test_on_an_object_store_the_name_holds_the_digest(folder):
    schema = pa.schema([("uid", pa.binary(16))])
    with new_shard(folder, 7) as shard:
        shard.open(schema, 4)
        record = shard.commit(pictures=Account.all_kept(0))
    expected = "00007.arrow" if folder.is_local else f"00007-{record.entry.digest[:16]}.arrow"
    assert record.entry.file == expected


def test_a_local_shard_is_memory_mapped(tmp_path):
    folder = Folder.at(tmp_path)
    schema = pa.schema([("uid", pa.binary(16)), ("value", pa.large_binary())])
    with new_shard(folder, 0) as shard:
        value = pa.table({"uid": [b"u" * 16], "value": [os.urandom(8 << 20)]}, schema=schema)
        shard.open(schema, 4).write(value)
        shard.commit(pictures=Account.all_kept(1))
    before = pa.total_allocated_bytes()
    table = folder.open_arrow("00000.arrow").read_all()
    assert len(table.column("value")[0].as_buffer()) == 8 << 20
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_sweep_removes_what_killed_attempts_left_and_nothing_else(tmp_path):
    folder = Folder.at(tmp_path)
    folder.publish("kept.json", b"1")
    (tmp_path / "ledger").mkdir()
    for path in (tmp_path / f"{TEMPORARY}1", tmp_path / "ledger" / f"{TEMPORARY}2"):
        path.write_bytes(b"half")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{TEMPORARY}3").write_bytes(b"another job's")
    folder.sweep("ledger", "absent")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "kept.json",
        "ledger",
        "other",
        f"other/{TEMPORARY}3",
    ]


def test_an_unknown_scheme_is_named():
    with pytest.raises(ConfigError, match="nosuch://bucket/x: cannot be opened"):
        Folder.at("nosuch://bucket/x")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("runs/web", "runs/web/raw"),
        ("runs/what?/", "runs/what?/raw"),
        ("s3://bucket/web/", "s3://bucket/web/raw"),
        ("s3://bucket/web?region=x&scheme=http", "s3://bucket/web/raw?region=x&scheme=http"),
    ],
)
def test_what_is_below_a_place_keeps_the_options_of_its_uri(location, expected):
    assert below(location, "raw") == expected


def test_a_file_in_place_of_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        Folder.at(tmp_path / "file").create()


_HOLD = """
import sys
from pipeline.storage import Folder
with Folder.at(sys.argv[1]).locked(".lock", note="the first"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_has_the_note_of_its_holder_and_dies_with_it(tmp_path):
    folder = Folder.at(tmp_path)
    assert folder.note_of_lock(".lock") is None
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        assert folder.note_of_lock(".lock") == "the first"
        with pytest.raises(Locked) as refused, folder.locked(".lock", note="the second"):
            pass
        assert refused.value.note == "the first"
        first.kill()
        first.wait()
    assert folder.note_of_lock(".lock") is None
    with folder.locked(".lock", note="the second"):
        assert folder.note_of_lock(".lock") == "the second"


def test_whoever_looks_at_a_lock_keeps_nobody_from_it(tmp_path):
    (tmp_path / ".lock").touch()
    with open(tmp_path / ".lock") as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.06, fcntl.flock, (looks, fcntl.LOCK_UN))
        letting_go.start()
        with Folder.at(tmp_path).locked(".lock", note="a job"):
            pass
        letting_go.join()
