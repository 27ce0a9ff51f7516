"""Leaks of a small dataset, whose truth is known, with hashes of curate's and of one's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexes.recall import Ranks
from jobs.cli import main
from jobs.evaluate import leaks
from jobs.evaluate.leaks import _without
from pipeline.dataset import Dataset
from pipeline.leaks import hashes_beside

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, embeddings, data, unbroken):
    """The result of an evaluation with these options."""

    def evaluated(*options: object) -> dict:
        out = tmp_path_factory.mktemp("leaks") / "evaluation.json"
        run(
            *("evaluate", embeddings, "--checkpoint", unbroken),
            *("--features", data / "features", "--captions", data / "pairs", "--rerank", 0),
            *("--control", "none", "--out", out, *options),
        )
        return json.loads(out.read_text())

    return evaluated


@pytest.fixture(scope="module")
def other_pairs(tmp_path_factory, data) -> Path:
    """Pairs of the same pictures under other paths, all in the training split."""
    home = tmp_path_factory.mktemp("other")
    shutil.copytree(data / "source", home / "elsewhere" / "source")
    run("ingest", home / "elsewhere", "--out", home / "raw")
    shares = ("--validation-share", 0, "--test-share", 0)
    run("curate", home / "raw", "--out", home / "pairs", *shares)
    return home / "pairs"


def test_hashes_of_curate_stand_beside_its_rows(data):
    pairs = Dataset.open(str(data / "pairs"))
    found = hashes_beside(pairs)
    uids = [uid for shard in pairs.shards() for uid in shard.table.column("uid").to_pylist()]
    assert found.column("uid").to_pylist() == uids
    rows = {number: np.arange(record.entry.rows) for number, record in pairs.records.items()}
    bare = Dataset(pairs.folder / "nowhere", pairs.manifest, pairs.tombstones)
    assert hashes_beside(bare) is None
    assert len(rows) > 1
    again = leaks._hasher(pairs, rows)
    for number in rows:
        made = again(leaks.Task(number, 0))
        first = sum(len(rows[earlier]) for earlier in rows if earlier < number)
        for name in ("uid", "pixels", "phash", "colours"):
            assert made.column(name).equals(found.slice(first, len(rows[number])).column(name))


def test_a_split_of_curate_leaks_nothing_and_this_is_found_unasked(evaluated, data):
    digest = Dataset.open(str(data / "pairs")).digest
    counts = {"num_pictures": 0, "same_uid": 0, "same_pixels": 0, "alike": 0}
    assert evaluated()["leaks"] == {"training": [digest], **counts, "uids": []}


def test_pictures_that_were_trained_on_are_found_by_uid_and_told_apart(evaluated, data, tmp_path):
    """The same pictures, curated into another split."""
    shares = ("--validation-share", 0, "--test-share", 0)
    run("curate", data / "raw", "--out", tmp_path / "pairs", *shares)
    result = evaluated("--training", tmp_path / "pairs")
    found = result["leaks"]
    assert (
        found["same_uid"] == found["num_pictures"] == result["num_pictures"] == len(found["uids"])
    )
    assert found["same_pixels"] == found["alike"] == 0
    assert "recall_without" not in found  # none would be left


def test_pictures_under_other_addresses_are_found_by_their_pixels(evaluated, other_pairs):
    result = evaluated("--training", other_pairs)
    found = result["leaks"]
    assert found["same_pixels"] == found["num_pictures"] == result["num_pictures"]
    assert found["same_uid"] == 0


def test_without_curates_hashes_pictures_are_hashed_again(evaluated, other_pairs, tmp_path):
    shutil.copytree(other_pairs, tmp_path / "pairs", ignore=shutil.ignore_patterns(".work"))
    found = evaluated("--training", tmp_path / "pairs")["leaks"]
    assert found == evaluated("--training", other_pairs)["leaks"]


def test_pairs_that_the_checkpoint_does_not_name_are_not_looked_into_unasked(
    evaluated, monkeypatch
):
    monkeypatch.setattr(leaks, "_trained_on", lambda checkpoint: {"0" * 64})
    assert evaluated()["leaks"] is None


def test_pairs_of_other_pictures_are_refused(other_pairs, data, embeddings, unbroken, refused):
    line = refused(
        *("evaluate", embeddings, "--checkpoint", unbroken, "--features", data / "features"),
        *("--captions", data / "pairs", "--pairs", other_pairs, "--training", data / "pairs"),
    )
    assert "do not match: shard" in line


def test_where_nothing_tells_the_result_says_so(evaluated, data, tmp_path, capsys):
    shutil.copytree(data / "pairs", tmp_path / "pairs", ignore=shutil.ignore_patterns(".work"))
    capsys.readouterr()
    assert evaluated("--captions", tmp_path / "pairs")["leaks"] is None
    assert "trained on: not looked for; name the pairs with --training" in capsys.readouterr().out


def test_queries_that_leaked_are_left_out_and_items_stay():
    ranks = Ranks(np.array([0, 3, -1, 7]), np.array([1, 2, 3, 4]), np.array([0, 1, 1, 3]))
    found = _without(ranks, np.array([1]))
    assert found.pictures.tolist() == [0, -1, -1, 7]
    assert (found.captions.tolist(), found.owners.tolist()) == ([1, 4], [0, 3])
