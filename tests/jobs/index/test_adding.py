"""Further pictures of an index, as a user adds them: searches, takedowns, running servers."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from indexes import building
from indexes.exact import on_grid
from indexes.retrieval import RetrievalIndex
from jobs.cli import main
from jobs.search_places import PlacesConfig
from jobs.serve.replicas import Asked, Replica, ReplicaWork
from jobs.serve.running import open_catalogue
from pipeline.claim import claimed
from pipeline.dataset import Dataset
from pipeline.pictures import PictureConfig
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def uid(row: int) -> bytes:
    return row.to_bytes(16, "big")


@pytest.fixture
def index(made, copy) -> Path:
    """That of the eleven, to be added to."""
    return copy("index") / "index"


def numbers_by_hand(made, query: np.ndarray) -> list[int]:
    """Numbers of all seventeen pictures, those closest to a query [A, E] first."""
    scored = {}
    for name, first in (("embeddings-2", 9), ("embeddings", 0)):
        folder = str(made.home / name / "image_embeddings")
        for number, shard in enumerate(Dataset.open(folder).shards()):
            for row, vectors in enumerate(shard.table.column("vectors").to_pylist()):
                vectors = on_grid(np.reshape(vectors, (4, 16)).astype(np.float32))
                scored[first + 6 * number + row] = (on_grid(query) @ vectors.T).max()
    return sorted(scored, key=lambda number: (-scored[number], number))


def numbers_of(results: list[dict]) -> list[int]:
    return [int(result["uid"], 16) for result in results]


def test_pictures_that_were_added_are_found_beside_those_that_were_there(
    made, index, tmp_path, capsys, caplog, searched
):
    text = "a red boat"
    (vector,) = made.stage1.embed_texts([text]).numpy()
    expected = numbers_by_hand(made, vector[None])
    with caplog.at_level("INFO"):
        run(*made.add, index)
    assert f"left out: 2 of 8 pictures, which {index} has already" in caplog.text
    assert "index of 17 pictures with 4 vectors each (exact)" in capsys.readouterr().out
    found = searched(index, text, "--k", 30, "--save", tmp_path / "saved")
    results = found["searches"][0]["results"]
    assert numbers_of(results) == expected
    assert [result["part"] for result in results] == [int(number > 10) for number in expected]
    for result in results:
        pairs = Dataset.open(str(made.home / ("pairs-2" if result["part"] else "pairs")))
        row = pairs.shard(result["shard"]).table.slice(result["row"], 1).to_pylist()[0]
        assert (row["uid"].hex(), row["url"]) == (result["uid"], result["url"])
        assert (tmp_path / "saved" / result["file"]).read_bytes() == row["picture"]
    run("search", index, text, "--k", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["rank", "score", "part:shard:row", "caption", "source"]
    assert " {part}:{shard}:{row} ".format(**results[0]) in lines[2]
    # Done is done.
    before = (index / "index.json").read_bytes()
    with caplog.at_level("INFO"):
        run(*made.add, index)
        run("index", "--config", index / "added-00001" / "config.yaml")
    assert caplog.text.count("already there: ") == 2
    assert (index / "index.json").read_bytes() == before


def test_captions_and_reranking_go_over_all_parts(made, index, refused, searched):
    run(*made.add, index)
    file = made.paths[12]
    (found,) = searched(index, "--image", file, "--find", "captions", "--k", 99)["searches"]
    assert {int(one["uid"], 16) for one in found["captions"]} == {
        *(row for row in range(11) if row % 3),
        *(9 + row for row in range(2, 8) if row % 3),
    }
    asked = (index, "a red boat", "--k", 17, "--rerank", 17)
    encoded = searched(*asked)["searches"][0]["results"]
    both = [made.home / name / "features" for name in ("embeddings-2", "embeddings")]
    moved = ("--pairs", made.home / "pairs-2", "--pairs", made.home / "pairs")
    for given in (both[:1], both[1:], both):
        named = [word for features in given for word in ("--features", features)]
        cached = searched(*asked, *named, *moved)["searches"][0]["results"]
        matches = {one["uid"]: one["match"] for one in encoded}
        for one in cached:
            assert one["match"] == pytest.approx(matches[one["uid"]], rel=0.02, abs=0.02)
    said = refused("search", made.home / "index", *asked[1:], "--features", both[0])
    assert f"{both[0]} has other pictures' features" in said
    said = refused("search", made.home / "index", *asked[1:], "--pairs", moved[1])
    assert "was made of pairs" in said


def test_an_addition_that_was_killed_goes_on_with_the_same_command(
    made, index, tmp_path, monkeypatch, refused, searched
):
    shutil.copytree(index, tmp_path / "unbroken")
    run(*made.add, tmp_path / "unbroken")
    before = searched(index, "a red boat", "--k", 30)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "publish", killed)
        assert main([str(word) for word in (*made.add, index)]) == 130
    assert searched(index, "a red boat", "--k", 30) == before
    said = refused(*made.add, index, "--split", "test")
    assert "added-00001: another addition was begun there (config.split" in said
    run(*made.add, index)
    one, other = (RetrievalIndex.open(str(home)) for home in (index, tmp_path / "unbroken"))
    assert one.digest == other.digest
    assert one.pictures.equals(other.pictures)


@pytest.mark.slow
def test_on_an_object_store_all_is_as_on_a_disk(made, index, searched, bucket):
    fs, whole_uri = bucket
    fs.create_dir("bucket/added-to")  # other tests have what they make beside it

    def uri(name: str) -> str:
        return whole_uri(f"added-to/{name}")

    for name in ("pairs", "pairs-2", "embeddings", "embeddings-2"):
        where = f"bucket/added-to/{name}"
        pafs.copy_files(f"{made.home}/{name}", where, destination_filesystem=fs)
    stage1 = ("--checkpoint", made.home / "stage1")
    run("index", uri("embeddings"), "--pairs", uri("pairs"), "--out", uri("index"), *stage1)
    run("index", uri("embeddings-2"), "--pairs", uri("pairs-2"), "--add-to", uri("index"))
    run(*made.add, index)
    opened = [RetrievalIndex.open(place) for place in (uri("index"), str(index))]
    assert opened[0].digest == opened[1].digest
    here, there = (searched(place, "a red boat", "--k", 30) for place in (index, uri("index")))
    assert here["searches"] == there["searches"]


def test_what_cannot_be_added_is_one_line(made, index, tmp_path, refused):
    with claimed(Folder.at(index), "viaduct x"):
        said = refused(*made.add, index)
    assert "index: another job is writing here (viaduct x, process" in said
    assert "out, add_to: give one of them" in refused(*made.add[:-1])
    assert "out, add_to: give" in refused(*made.add, index, "--out", tmp_path / "x")
    images = made.home / "embeddings-2" / "image_embeddings"
    said = refused("index", images, *made.add[2:], index)
    assert "index: has vectors of captions, what is added has none" in said
    assert "nowhere: no such folder" in refused(*made.add, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in index.iterdir() if path.name.startswith("added")] == []


def test_a_running_server_follows(made, index):
    """Its list of pictures, and the replica that searches them."""
    places = PlacesConfig()
    catalogue = open_catalogue(str(index), places)
    work = {"max_batch": 4, "max_heavy_batch": 4, "threads": 1, "device": "cpu"}
    replica = Replica(
        ReplicaWork(index=str(index), places=places, pictures=PictureConfig(), **work)
    )
    assert catalogue.get().find(uid(13)) is None
    assert not catalogue.get().has_additions
    run(*made.add, index)
    found = catalogue.get(now=True).find(uid(13))
    assert (found.part, found.shard, found.row) == (1, 0, 4)
    stored = Dataset.open(str(made.home / "pairs-2")).shard(0).table.column("picture")
    assert catalogue.get().picture(uid(13)) == stored[4].as_py()
    assert catalogue.get().facts()["num_pictures"] == 17
    # The replica has not looked yet: a picture that it does not know has it look.
    reply = asyncio.run(replica(Asked(like=found, k=99)))
    assert reply.index == RetrievalIndex.open(str(index)).digest
    assert sorted(numbers_of(reply.results)) == [number for number in range(17) if number != 13]
    assert {one["part"] for one in reply.results} == {0, 1}


def test_a_takedown_from_pairs_that_were_added_is_seen_by_a_running_server(
    made, index, tmp_path, copy
):
    copy("pairs-2")
    catalogue = open_catalogue(str(index), PlacesConfig())
    run(*made.add[:3], tmp_path / "pairs-2", "--add-to", index)
    assert catalogue.get(now=True).find(uid(13)) is not None
    add_tombstones(Folder.at(tmp_path / "pairs-2"), [uid(13), uid(9)])
    assert catalogue.get(now=True).find(uid(13)) is None
    assert catalogue.get().find(uid(9)) is not None  # it is shown out of the first
