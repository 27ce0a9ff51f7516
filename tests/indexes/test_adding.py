"""An index with additions is searched as one of all pictures, and nothing of it is made anew."""

import json
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow.fs as pafs
import pytest

from indexes.adding import next_addition, publish_addition, unfinished_additions
from indexes.building import build
from indexes.exact import on_grid
from indexes.kinds import IndexConfig
from indexes.parts import indexed
from indexes.retrieval import RetrievalIndex
from indexes.storage import begin
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones

FIRSTS = (0, 10, 20)
"""Of the families: each has 16 pictures, of which the next has six too."""


def make(folder: Folder, sources) -> None:
    if begin(folder, sources.lineage) is not None:
        build(folder, sources, lambda count: None)


def add(folder: Folder, sources) -> tuple[int, int] | None:
    """Of those wanted and those known; None where it was there."""
    addition = next_addition(folder, sources)
    if addition is None:
        return None
    make(addition.folder, addition.sources)
    publish_addition(folder, addition.folder)
    return addition.num_wanted, addition.num_known


@pytest.fixture(scope="module")
def families(tmp_path_factory, make_family):
    """Three; the second has the vectors of the first, so that scores tie between them."""
    home = tmp_path_factory.mktemp("families")
    return [
        make_family(home / str(first), seed=seed, word=f"of {first},", first=first)
        for first, seed in zip(FIRSTS, (0, 0, 2), strict=True)
    ]


@pytest.fixture
def folder(tmp_path, families):
    folder = Folder.at(tmp_path / "index")
    make(folder, families[0].sources())
    return folder


def kept(families, down=()) -> list[tuple[int, int]]:
    """Family and row of each picture that is searched, in order: row 9 has no vectors."""
    seen = {bytes([0])}
    found = []
    for number, family in enumerate(families):
        its = [(number, row) for row in range(16) if row != 9]
        found += [(n, row) for n, row in its if families[n].rows[row]["uid"] not in seen]
        seen |= {family.rows[row]["uid"] for _, row in its}
    return [(n, row) for n, row in found if families[n].rows[row]["uid"] not in down]


def pictures_by_hand(families, query, k, down=()) -> list[tuple[float, bytes, int]]:
    places = kept(families, down)
    scored = [
        (-(on_grid(query) @ on_grid(families[n].pictures[row]).T).max(), place)
        for place, (n, row) in enumerate(places)
    ]
    best = [(-score, *places[place]) for score, place in sorted(scored)[:k]]
    return [(score, families[n].rows[row]["uid"], n) for score, n, row in best]


def captions_by_hand(families, query, k, down=()) -> list[tuple[float, str]]:
    scored = [
        (-(on_grid(query) @ on_grid(vector)).max(), f"of {FIRSTS[n]}, {i} of {row}")
        for n, row in kept(families, down)
        for i, vector in enumerate(families[n].texts[row])
    ]
    return [(-score, text) for score, text in sorted(scored, key=lambda one: one[0])[:k]]


def told(found) -> list[tuple[float, bytes, int]]:
    return [(one.score, one.uid, one.part) for one in found]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("shard_pictures", [1, 1_000_000])
def test_all_parts_are_searched_as_one(folder, families, kind, shard_pictures):
    config = IndexConfig(kind=kind, shard_pictures=shard_pictures)
    for family in families[1:]:
        counts = add(folder, replace(family.sources(), config=config))
        assert counts == (16, 6)
    index = RetrievalIndex.open(folder, verify=True)
    assert len(index.pictures) == len(kept(families)) == 15 + 9 + 9
    assert index.summary.startswith("index of 33 pictures with 3 vectors each (")
    assert "captions, 2 additions, digest" in index.summary
    queries = families[0].pictures[[3, 11, 12]]
    for k in (1, 4, 100):
        for query, found, captions, texts in zip(
            queries,
            index.search_pictures(queries, k),
            index.search_captions(queries, k),
            index.search_texts(queries[:, 0], k),
            strict=True,
        ):
            assert told(found) == pictures_by_hand(families, query, k)
            assert told(texts) == pictures_by_hand(families, query[:1], k)
            assert [(one.score, one.text) for one in captions] == captions_by_hand(
                families, query, k
            )
    # Equal vectors in two parts tie, and what was there first comes first.
    first, second = index.search_pictures(queries[1:2], 2)[0]
    assert (first.score, first.part) == (second.score, second.part - 1)
    for picture in found:
        family = families[picture.part]
        shard = family.dataset("pairs").shard(picture.shard).table
        assert shard.column("uid")[picture.row].as_py() == picture.uid
    assert [index.first_of(part).uid[-1] for part in range(3)] == [0, 16, 26]


def test_nothing_but_index_json_is_written_anew(folder, tmp_path, families):
    def files() -> dict[str, tuple[bytes, int]]:
        paths = [path for path in (tmp_path / "index").rglob("*") if path.is_file()]
        return {
            str(path.relative_to(tmp_path / "index")): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in paths
        }

    before, digest = files(), RetrievalIndex.open(folder).digest
    add(folder, families[1].sources())
    after = files()
    assert {name for name in before if after[name] != before[name]} == {"index.json"}
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"added-00001"}
    index = RetrievalIndex.open(folder)
    assert index.digest != digest
    value = json.loads((tmp_path / "index" / "index.json").read_text())
    (added,) = value["added"]
    assert added["folder"] == "added-00001"
    own = json.loads((tmp_path / "index" / "added-00001" / "index.json").read_text())
    assert own["digest"] == added["digest"]
    assert own["lineage"]["parents"][-1] == {"kind": "index", "digest": digest}
    assert add(folder, families[1].sources()) is None
    assert add(folder, families[0].sources()) is None
    assert files() == after


class Killed(BaseException):
    """What no code here catches."""


@pytest.mark.parametrize("step", ["being made", "made and not yet published"])
def test_what_was_killed_goes_on_and_until_then_the_old_state_is_searched(
    folder, families, monkeypatch, step
):
    before = RetrievalIndex.open(folder)

    def killed(*arguments):
        raise Killed

    sources = families[1].sources()
    addition = next_addition(folder, sources)
    if step == "made and not yet published":
        make(addition.folder, addition.sources)
    else:
        with monkeypatch.context() as patch:
            patch.setattr("indexes.building.commit_shard", killed)
            with pytest.raises(Killed):
                make(addition.folder, addition.sources)
    assert RetrievalIndex.open(folder, verify=True).digest == before.digest
    assert [one.name for one in unfinished_additions(folder)] == ["added-00001"]
    with pytest.raises(ConfigError, match="added-00001: another addition was begun there"):
        next_addition(folder, families[2].sources())
    assert add(folder, sources) == (16, 6)
    assert unfinished_additions(folder) == []
    assert RetrievalIndex.open(folder, verify=True).pictures.num_rows == 24


def test_what_cannot_be_added_is_refused_before_anything_is_written(
    folder, tmp_path, families, make_family
):
    def refused(sources, match: str, to: Folder = folder) -> None:
        with pytest.raises(ConfigError, match=match) as error:
            next_addition(to, sources)
        assert "\n" not in str(error.value)

    other = make_family(tmp_path / "other", checkpoint="d" * 64, first=40)
    refused(other.sources(), r"index was made with checkpoint c{16}, .*image_embeddings with d{16}")
    wider = make_family(tmp_path / "wider", per_picture=5, first=40)
    refused(wider.sources(), "index: 3 vectors of 8 values a picture, .*: 5 of 8")
    refused(families[1].sources(with_texts=False), "has vectors of captions, .* has none")
    refused(families[1].sources(), "nowhere: no such folder", Folder.at(tmp_path / "nowhere"))
    unfinished = Folder.at(tmp_path / "unfinished")
    begin(unfinished, families[0].sources().lineage)
    refused(families[1].sources(), "unfinished: not finished", unfinished)
    assert unfinished_additions(folder) == []
    add(folder, families[1].sources())
    refused(families[2].sources(), "is an addition; name the index", folder / "added-00001")
    with pytest.raises(ConfigError, match="is an addition; name the index"):
        RetrievalIndex.open(folder / "added-00001")


def test_splits_of_the_same_datasets_may_be_added_one_by_one(tmp_path, families):
    folder = Folder.at(tmp_path / "splits")
    make(folder, families[0].sources(split="train"))
    for split, count in (("test", 3), ("validation", 4)):
        assert add(folder, families[0].sources(split=split))[1] == 0
        assert RetrievalIndex.open(folder).parts[-1].num_pictures == count
    otherwise = replace(families[0].sources(split="train"), config=IndexConfig(seed=1))
    assert next_addition(folder, otherwise) is None  # it would be of no picture


def test_a_takedown_acts_on_all_parts(folder, families):
    add(folder, families[1].sources())
    down = [bytes(15) + bytes([number]) for number in (2, 21, 77)]
    assert indexed(folder, frozenset(down)) == set(down[:2])
    add_tombstones(folder, down[:2])
    index = RetrievalIndex.open(folder)
    two, query = families[:2], families[0].pictures[11]
    assert told(index.search_pictures(query[None], 100)[0]) == pictures_by_hand(
        two, query, 100, down
    )
    assert [one.text for one in index.search_captions(query[None], 100)[0]] == [
        text for _, text in captions_by_hand(two, query, 100, down)
    ]
    # What is down is known all the same, and does not come back by another addition.
    assert add(folder, families[2].sources()) == (16, 6)
    found = RetrievalIndex.open(folder).search_pictures(query[None], 100)[0]
    assert down[1] not in [one.uid for one in found]


def test_an_addition_that_is_gone_or_another_is_named(folder, families, monkeypatch):
    add(folder, families[1].sources())
    text = (folder / "added-00001").read("index.json")
    for wrong, match in (
        (None, r"added-00001/index.json: is missing, index.json says"),
        (folder.read("00000.json"), r"added-00001/index.json: "),
    ):
        (folder / "added-00001").remove_file("index.json")
        if wrong is not None:
            (folder / "added-00001").publish("index.json", wrong)
        with pytest.raises(DatasetError, match=match):
            RetrievalIndex.open(folder)
    (folder / "added-00001").publish("index.json", text)
    assert RetrievalIndex.open(folder, verify=True).pictures.num_rows == 24
    value = json.loads(folder.read("index.json"))
    value["added"][0]["folder"] = "../other"
    folder.publish_json("index.json", value)
    with pytest.raises(DatasetError, match="its digest is not that of its content"):
        RetrievalIndex.open(folder)


def test_on_an_object_store_it_is_the_same(folder, families):
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store.clear()
    far = Folder(pafs.PyFileSystem(pafs.FSSpecHandler(memory)), "/added/index")
    make(far, families[0].sources())
    for home in (far, folder):
        assert add(home, families[1].sources()) == (16, 6)
    here, there = RetrievalIndex.open(folder), RetrievalIndex.open(far, verify=True)
    assert there.digest == here.digest
    queries = families[1].pictures[:3]
    assert there.search_pictures(queries, 9) == here.search_pictures(queries, 9)
    assert there.search_captions(queries, 9) == here.search_captions(queries, 9)
    assert np.isfinite([one.score for one in there.search_pictures(queries, 1)[0]]).all()
    assert unfinished_additions(far) == []
