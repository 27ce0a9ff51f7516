"""A shard is committed whole or not at all, and its bytes depend on its rows alone."""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.accounting import Account
from pipeline.errors import ConfigError, DatasetError
from pipeline.schemas import CAPTION
from pipeline.shard import ShardRecord, new_shard, read_record
from pipeline.storage import TEMPORARY, Folder

SCHEMA = pa.schema([("uid", pa.binary(16)), ("value", pa.int64()), ("text", pa.string())])


def rows(count: int, *, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table(
        {
            "uid": [n.to_bytes(16, "big") for n in numbers],
            "value": [None if n % 7 == 3 else n for n in numbers],
            "text": [f"row {n}" for n in numbers],
        },
        schema=SCHEMA,
    )


def commit(folder: Folder, number: int, *tables: pa.Table, rows_per_batch: int = 8) -> ShardRecord:
    with new_shard(folder, number) as shard:
        writer = shard.open(SCHEMA, rows_per_batch)
        for table in tables:
            writer.write(table)
        return shard.commit(pictures=Account.all_kept(sum(t.num_rows for t in tables)))


def test_rows_come_back_in_batches_of_a_fixed_size(tmp_path):
    folder = Folder.at(tmp_path)
    record = commit(folder, 3, rows(29))
    reader = folder.open_arrow(record.entry.file)
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert sizes == [8, 8, 8, 5]
    assert reader.read_all().equals(rows(29))


CAPTIONED = pa.schema(
    [("uid", pa.binary(16)), ("picture", pa.large_binary()), ("captions", pa.list_(CAPTION))]
)
captions = st.none() | st.lists(
    st.fixed_dictionaries({name.name: st.none() | st.text(max_size=5) for name in CAPTION}),
    max_size=3,
)


@given(
    values=st.lists(st.tuples(st.none() | st.binary(max_size=9), captions), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    before=st.integers(0, 3),
)
def test_bytes_depend_on_the_rows_alone_and_not_on_how_they_arrived(values, cuts, before):
    values = [(b"before", [])] * before + values
    pictures, texts = ([value[column] for value in values] for column in (0, 1))
    uids = [n.to_bytes(16, "big") for n in range(len(values))]
    table = pa.table([uids, pictures, texts], schema=CAPTIONED).slice(before)
    edges = [0, *sorted(min(cut, table.num_rows) for cut in cuts), table.num_rows]
    pieces = [table.slice(a, b - a) for a, b in pairwise(edges)]
    alone = pa.table([uids[before:], pictures[before:], texts[before:]], schema=CAPTIONED)
    digests = set()
    for tables in ([alone], pieces):
        with tempfile.TemporaryDirectory() as home, new_shard(Folder.at(home), 0) as shard:
            writer = shard.open(CAPTIONED, 8)
            for piece in tables:
                writer.write(piece)
            record = shard.commit(pictures=Account.all_kept(alone.num_rows))
            assert shard.folder.open_arrow(record.entry.file).read_all().equals(alone)
            digests.add((record.entry.digest, record.uid_digest))
    assert len(digests) == 1


def test_other_rows_give_another_digest(tmp_path):
    a = commit(Folder.at(tmp_path / "a"), 0, rows(29))
    b = commit(Folder.at(tmp_path / "b"), 0, rows(29, start=1))
    assert a.entry.digest != b.entry.digest
    assert a.uid_digest != b.uid_digest


def test_an_empty_shard_is_a_shard(tmp_path):
    folder = Folder.at(tmp_path)
    record = commit(folder, 0, rows(0))
    assert record.entry.rows == 0
    assert folder.open_arrow(record.entry.file).read_all().num_rows == 0


def test_what_is_not_committed_leaves_nothing(tmp_path):
    with new_shard(Folder.at(tmp_path), 0) as shard:
        shard.open(SCHEMA, 8).write(rows(20))
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_nothing(tmp_path):
    def fail():
        with new_shard(Folder.at(tmp_path), 0) as shard:
            shard.open(SCHEMA, 8).write(rows(20))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_record_tells_the_file_and_its_attachment(tmp_path):
    folder = Folder.at(tmp_path)
    with new_shard(folder, 2) as shard:
        shard.open(SCHEMA, 8).write(rows(5))
        shard.open(SCHEMA, 8, attachment="ledger").write(rows(9))
        written = shard.commit(pictures=Account(9, 5, {"failed:dns": 4}))
    record = read_record(folder, 2)
    assert record == written
    assert record.attachments["ledger"].file == "ledger/00002.arrow"
    for entry in record.files:
        assert (tmp_path / entry.file).stat().st_size == entry.bytes
        assert folder.digest(entry.file) == entry.digest


def test_a_shard_without_its_attachment_does_not_exist(tmp_path):
    folder = Folder.at(tmp_path)
    with new_shard(folder, 0) as shard:
        shard.open(SCHEMA, 8).write(rows(5))
        shard.open(SCHEMA, 8, attachment="ledger").write(rows(5))
        shard.commit(pictures=Account.all_kept(5))
    (tmp_path / "ledger/00000.arrow").unlink()
    assert read_record(folder, 0) is None


def test_a_truncated_file_does_not_exist(tmp_path):
    folder = Folder.at(tmp_path)
    record = commit(folder, 0, rows(20))
    file = tmp_path / record.entry.file
    file.write_bytes(file.read_bytes()[:-1])
    assert read_record(folder, 0) is None


def test_two_attempts_that_agree_are_one(tmp_path):
    folder = Folder.at(tmp_path)
    assert commit(folder, 0, rows(20)) == commit(folder, 0, rows(20))


def test_two_attempts_that_disagree_are_an_error_and_the_first_stands(tmp_path):
    folder = Folder.at(tmp_path)
    first = commit(folder, 0, rows(20))
    with pytest.raises(DatasetError, match=r"00000\.json: two attempts"):
        commit(folder, 0, rows(21))
    assert read_record(folder, 0) == first
    assert folder.digest(first.entry.file) == first.entry.digest


_HALTED = """
import sys
from pipeline.storage import Folder
with Folder.at(sys.argv[1]).locked_number(".commit.lock", 3, 0) as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is committing shard 3."""
    command = [sys.executable, "-c", _HALTED, str(home)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"True\n"
        yield process
        process.kill()


def test_a_commit_that_was_halted_holds_up_no_other_shard_and_its_own_not_for_ever(
    tmp_path, monkeypatch, caplog
):
    """As on a machine that is cut off from the network for a day."""
    folder = Folder.at(tmp_path)
    with held_elsewhere(tmp_path):
        commit(folder, 2, rows(5))
        assert not caplog.records
        monkeypatch.setattr("pipeline.shard._COMMIT_PATIENCE_S", 0.1)
        commit(folder, 3, rows(5))
        assert [record.message for record in caplog.records] == [
            "shard=00003: another attempt was halted in its commit"
        ]
    assert read_record(folder, 2).number == 2
    assert read_record(folder, 3).number == 3


def test_attempts_at_one_shard_commit_one_after_the_other(tmp_path, caplog):
    folder, let_go = Folder.at(tmp_path), threading.Event()
    with held_elsewhere(tmp_path) as first:

        def end_first() -> None:
            let_go.set()
            first.kill()

        threading.Timer(0.3, end_first).start()
        commit(folder, 3, rows(5))
        assert let_go.is_set()
    assert not caplog.records


def test_a_record_that_does_not_add_up_is_never_written(tmp_path):
    with new_shard(Folder.at(tmp_path), 0) as shard:
        shard.open(SCHEMA, 8).write(rows(5))
        with pytest.raises(DatasetError, match=r"pictures\.kept=4 but rows=5"):
            shard.commit(pictures=Account.all_kept(4))
    assert [p.name for p in tmp_path.iterdir()] == []


@pytest.mark.parametrize("field", ["file", "rows", "bytes", "digest", "uid_digest", "pictures"])
def test_a_record_without_a_field_is_named(tmp_path, field):
    folder = Folder.at(tmp_path)
    commit(folder, 0, rows(5))
    path = tmp_path / "00000.json"
    value = json.loads(path.read_text())
    del value[field]
    path.write_text(json.dumps(value))
    with pytest.raises(DatasetError, match=rf"00000\.json.*{field}"):
        read_record(folder, 0)


def test_a_record_with_wrong_counts_is_refused(tmp_path):
    folder = Folder.at(tmp_path)
    commit(folder, 0, rows(5))
    path = tmp_path / "00000.json"
    path.write_text(path.read_text().replace('"in": 5', '"in": 6'))
    with pytest.raises(DatasetError, match=r"00000\.json: account does not add up: in=6"):
        read_record(folder, 0)


def test_rows_of_another_schema_are_refused(tmp_path):
    with new_shard(Folder.at(tmp_path), 0) as shard:
        writer = shard.open(SCHEMA, 8)
        with pytest.raises(DatasetError, match="another schema"):
            writer.write(rows(3).drop_columns("text"))


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_committed(tmp_path, monkeypatch):
    folder = Folder.at(tmp_path)
    first = commit(folder, 0, rows(20))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.storage.os.fsync", full)
    with pytest.raises(ConfigError, match="the disk is full; what was committed stays"):
        commit(folder, 1, rows(20))
    monkeypatch.undo()
    assert read_record(folder, 0) == first
    assert read_record(folder, 1) is None
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(TEMPORARY)]
