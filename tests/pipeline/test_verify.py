"""Verification finds what was changed after the commit, and names it."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.accounting import Account
from pipeline.candidates import candidate_rows, caption_account
from pipeline.captions import web_caption
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.schemas import LEDGER, PAIRS, RAW
from pipeline.shard import commit_table, new_shard
from pipeline.storage import Folder
from pipeline.verify import verify


def make(home: Path, kind: str, schema: pa.Schema, shards: list[list[int]]) -> Dataset:
    """A dataset of tiny rows, with a ledger beside each shard of `raw`."""
    draft = Draft.begin(Folder.at(home), kind, schema, Lineage("test", {}))
    for number, uids in enumerate(shards):
        rows = [
            {
                "uid": uid.to_bytes(16, "big"),
                "picture": bytes(500),
                "captions": [web_caption("a"), {**web_caption(""), "status": "rejected:empty"}],
            }
            for uid in uids
        ]
        with new_shard(draft.folder, number) as shard:
            writer = shard.open(schema, draft.rows_per_batch)
            writer.write(pa.Table.from_pylist(rows, schema=schema))
            if kind == "raw":
                ledger = shard.open(LEDGER, 1024, attachment="ledger")
                ledger.write(pa.Table.from_pylist([{"uid": r["uid"]} for r in rows], LEDGER))
            captions = Account(2 * len(uids), len(uids), {"rejected:empty": len(uids)})
            shard.commit(pictures=Account.all_kept(len(uids)), captions=captions)
    return draft.publish(draft.committed().values())


@pytest.fixture
def raw(tmp_path):
    return make(tmp_path / "raw", "raw", RAW, [[1, 2, 3], [4, 5]])


def test_a_whole_dataset_has_no_faults(raw):
    assert list(verify(raw)) == []


@pytest.mark.parametrize("name", ["00001.arrow", "ledger/00000.arrow"])
def test_each_file_is_read_to_its_last_byte(raw, name):
    path = Path(raw.folder.path, name)
    content = bytearray(path.read_bytes())
    for position in (8, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 255
        path.write_bytes(damaged)
        (fault,) = verify(raw)
        assert f"{name}: damaged" in fault
    path.write_bytes(content[:-1])
    assert [f"{name}: has {len(content) - 1} bytes" in fault for fault in verify(raw)] == [True]
    path.unlink()
    assert [f"{name}: is missing" in fault for fault in verify(raw)] == [True]


def test_a_record_beside_the_shard_must_be_the_manifests(raw):
    path = Path(raw.folder.path, "00000.json")
    record = json.loads(path.read_text())
    record["uid_digest"] = "0" * 64
    path.write_text(json.dumps(record))
    (fault,) = verify(raw)
    assert "the record of shard 00000 is not its own" in fault


def test_every_damaged_shard_is_named(raw):
    for name in ("00000.arrow", "00001.arrow"):
        Path(raw.folder.path, name).unlink()
    assert len(list(verify(raw))) == 2


def test_a_uid_twice_in_pairs_is_a_fault(tmp_path):
    dataset = make(tmp_path, "pairs", PAIRS, [[1, 2], [2, 3]])
    (fault,) = verify(dataset)
    assert f"uid {(2).to_bytes(16, 'big').hex()} is there 2 times" in fault


def test_captions_that_are_not_as_recorded_are_a_fault(tmp_path):
    draft = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, Lineage("test", {}))
    with new_shard(draft.folder, 0) as shard:
        row = {"uid": b"u" * 16, "captions": [web_caption("a")]}
        shard.open(PAIRS, 64).write(pa.Table.from_pylist([row], schema=PAIRS))
        shard.commit(pictures=Account.all_kept(1), captions=Account.all_kept(2))
    (fault,) = verify(draft.publish(draft.committed().values()))
    assert "captions are {'kept': 1}, recorded {'kept': 2}" in fault


def score(judge="clip:a", itc=0.5, itm=None) -> dict:
    return {"judge": judge, "itc": itc, "itm": itm}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (score(judge=None), "'judge': None"),
        (score(itc=None), "'itc': None"),
        (score(itc=float("inf")), "'itc': inf"),
        (score(itm=1.5), "'itm': 1.5"),
        (score(itm=float("nan")), "'itm': nan"),
    ],
)
def test_a_score_that_is_none_is_a_fault(tmp_path, wrong, said):
    rows = [
        None,
        [web_caption("a") | {"scores": [score()]}],
        [web_caption("b") | {"scores": []}, web_caption("c") | {"scores": [score(itm=1.0), wrong]}],
    ]
    uids = [bytes([row] * 16) for row in range(3)]
    for kind, last, faults in (("captions", 2, 0), ("candidates", 3, 1)):
        table = candidate_rows(uids[:last], rows[:last], ["train"] * last)
        draft = Draft.begin(Folder.at(tmp_path / kind), kind, table.schema, Lineage("test", {}))
        accounts = {"pictures": Account.all_kept(last), "captions": caption_account(table)}
        commit_table(draft.folder, 0, table, draft.rows_per_batch, **accounts)
        found = list(verify(draft.publish(draft.committed().values())))
        assert len(found) == faults
    assert f"picture {uids[2].hex()}: a caption's score is {{" in found[0]
    assert said in found[0]


def test_a_uid_twice_in_captions_is_a_fault(tmp_path):
    table = candidate_rows([b"u" * 16] * 2, [None, None], ["train", "train"])
    draft = Draft.begin(Folder.at(tmp_path), "captions", table.schema, Lineage("test", {}))
    accounts = {"pictures": Account.all_kept(2), "captions": Account(0, 0)}
    commit_table(draft.folder, 0, table, draft.rows_per_batch, **accounts)
    (fault,) = verify(draft.publish(draft.committed().values()))
    assert f"uid {(b'u' * 16).hex()} is there 2 times" in fault
