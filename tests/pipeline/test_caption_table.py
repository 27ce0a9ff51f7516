"""Captions as a table: a row each, with its picture, its place, and every judge's scores."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.accounting import Account
from pipeline.candidates import candidate_rows, caption_account
from pipeline.caption_table import write_caption_table
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.schemas import PAIRS, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones


def uid(row: int) -> bytes:
    return bytes([row] * 16)


def web(text: str) -> dict:
    return {"text": text, "source": "web", "status": "kept"}


WEB = [[web("a"), web("b")], [], [web("c")], [web("d")]]


def publish(home: Path, kind: str, tables: list[pa.Table]) -> Dataset:
    draft = Draft.begin(Folder.at(home), kind, tables[0].schema, Lineage("test", {}))
    for number, table in enumerate(tables):
        captions = caption_account(table) if "captions" in table.column_names else None
        whole = Account.all_kept(len(table))
        commit_table(
            draft.folder, number, table, draft.rows_per_batch, pictures=whole, captions=captions
        )
    return draft.publish(draft.committed().values())


@pytest.fixture
def pairs(tmp_path) -> Dataset:
    """Four pictures in shards of one and three, the last of them held out."""
    rows = [
        {"uid": uid(n), "url": f"u{n}", "captions": its, "split": "test" if n == 3 else "train"}
        for n, its in enumerate(WEB)
    ]
    parts = [pa.Table.from_pylist(part, PAIRS) for part in (rows[:1], rows[1:])]
    return publish(tmp_path / "pairs", "pairs", parts)


def scored(text: str, status: str, **scores: tuple[float, float | None]) -> dict:
    told = [{"judge": name, "itc": itc, "itm": itm} for name, (itc, itm) in scores.items()]
    return {"text": text, "source": "synthetic", "status": status, "scores": told}


def read(dataset: Dataset, beside: Dataset | None = None, split: str = "all") -> list[dict]:
    folder = dataset.folder / "out"
    count = write_caption_table(dataset, beside, split, folder, "captions.parquet")
    rows = pq.read_table(f"{folder}/captions.parquet").to_pylist()
    assert len(rows) == count
    return rows


def test_pairs_are_told_with_their_urls(pairs):
    rows = read(pairs)
    assert rows[1] == {
        "uid": uid(0).hex(),
        "ordinal": 1,
        "url": "u0",
        "split": "train",
        "text": "b",
        "source": "web",
        "status": "kept",
    }
    assert [(row["url"], row["ordinal"], row["text"]) for row in rows] == [
        *(("u0", 0, "a"), ("u0", 1, "b"), ("u2", 0, "c"), ("u3", 0, "d"))
    ]
    assert [row["text"] for row in read(pairs, split="test")] == ["d"]
    add_tombstones(pairs.folder, [uid(2)])
    assert [row["text"] for row in read(Dataset.open(pairs.folder))] == ["a", "b", "d"]


def test_what_was_taken_down_beside_is_left_out_too(pairs, tmp_path):
    rows = [[scored(text, "kept")] for text in "efgh"]
    parts = [
        candidate_rows([uid(n) for n in part], [rows[n] for n in part], ["train"] * len(part))
        for part in ([0], [1, 2, 3])
    ]
    candidates = publish(tmp_path / "candidates", "candidates", parts)
    add_tombstones(pairs.folder, [uid(0), uid(2)])
    assert [row["text"] for row in read(candidates, Dataset.open(pairs.folder))] == ["f", "h"]
    add_tombstones(candidates.folder, [uid(3)])
    both = Dataset.open(candidates.folder), Dataset.open(pairs.folder)
    assert [row["text"] for row in read(*both)] == ["f"]


def test_a_folder_in_the_place_of_the_file_is_told(pairs):
    (Path(pairs.folder.path) / "out" / "captions.parquet").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"out/captions\.parquet: cannot be written: Is a dir"):
        read(pairs)
    assert os.listdir(Path(pairs.folder.path) / "out") == ["captions.parquet"]


def test_scores_have_a_column_for_each_judge_and_urls_come_from_beside(pairs, tmp_path):
    captions = [
        [scored("a", "kept"), scored("e", "rejected:not_best", x=(0.5, None), y=(0.25, 0.75))],
        None,
        [scored("c", "kept", y=(-1.0, 0.0), x=(1.0, None))],
        [scored("d", "kept")],
    ]
    splits = ["train", None, "train", "test"]
    parts = [
        candidate_rows(
            [uid(n) for n in part], [captions[n] for n in part], [splits[n] for n in part]
        )
        for part in ([0], [1, 2, 3])
    ]
    candidates = publish(tmp_path / "candidates", "candidates", parts)
    rows = read(candidates)
    assert {row["url"] for row in rows} == {None}
    rows = read(candidates, pairs)
    assert rows[1] == {
        "uid": uid(0).hex(),
        "ordinal": 1,
        "url": "u0",
        "split": "train",
        "text": "e",
        "source": "synthetic",
        "status": "rejected:not_best",
        "itc x": 0.5,
        "itm x": None,
        "itc y": 0.25,
        "itm y": 0.75,
    }
    told = [[row[f"{what} {who}"] for who in "xy" for what in ("itc", "itm")] for row in rows]
    assert told[0] == told[3] == [None] * 4
    assert told[2] == [1.0, None, -1.0, 0.0]
    assert [row["url"] for row in rows] == ["u0", "u0", "u2", "u3"]


def test_what_has_no_captions_or_splits_is_refused(pairs, tmp_path):
    schema = features_schema(1, 1, "fp16")
    features = publish(tmp_path / "features", "features", [schema.empty_table()])
    with pytest.raises(ConfigError, match="holds 'features', which has no captions"):
        read(features)
    no_splits = pairs.shard(0).table.select(PAIRS.names[:-1])
    raw = publish(tmp_path / "raw", "raw", [no_splits])
    assert [row["split"] for row in read(raw)] == [None, None]
    with pytest.raises(ConfigError, match=r"split: .* holds 'raw', which has no splits"):
        read(raw, split="train")
    assert not (tmp_path / "features" / "out").exists()
