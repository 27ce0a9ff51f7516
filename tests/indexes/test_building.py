"""An index is built whole or not at all, and holds what the datasets hold."""

import json
from dataclasses import replace

import numpy as np
import pytest

from indexes import building, gathering
from indexes.building import build
from indexes.gathering import gather
from indexes.kinds import IndexConfig
from indexes.retrieval import RetrievalIndex
from indexes.sources import Sources, checkpoint_of
from indexes.storage import begin
from pipeline.dataset import read_table
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage import TEMPORARY, Folder, TemporaryFile
from pipeline.tombstones import add_tombstones


def make(home, sources) -> RetrievalIndex:
    folder = Folder.at(home)
    if begin(folder, sources.lineage) is not None:
        build(folder, sources, lambda count: None)
    return RetrievalIndex.open(folder, verify=True)


def rows_of(index) -> list[int]:
    return [int.from_bytes(uid, "big") for uid in index.pictures.column("uid").to_pylist()]


def uids(numbers) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def test_an_index_holds_each_picture_with_its_place_and_its_captions(tmp_path, shared_family):
    index = make(tmp_path / "index", shared_family.sources())
    rows = [row for row in range(16) if row != 9]
    places = [(0, row) for row in range(5)] + [(1, row) for row in range(7) if row != 4]
    places += [(2, row) for row in range(4)]
    assert index.pictures.to_pylist() == [
        {
            "uid": row.to_bytes(16, "big"),
            "url": f"http://example.org/{row}.jpg",
            "captions": [f"caption {i} of {row}" for i in range(row % 4)],
            "shard": shard,
            "shard_row": shard_row,
        }
        for row, (shard, shard_row) in zip(rows, places, strict=True)
    ]
    assert index.picture_vectors.items.tolist() == list(range(15))
    assert len(index.caption_vectors) == sum(row % 4 for row in rows)
    assert index.manifest.num_queries == 3
    assert index.manifest.embed_dim == 8
    assert index.manifest.checkpoint == "c" * 64
    assert index.summary.startswith(
        "index of 15 pictures with 3 vectors each (exact) and 23 captions"
    )


def test_index_json_says_what_it_was_made_of(tmp_path, shared_family):
    index = make(tmp_path / "index", shared_family.sources(split="test"))
    value = json.loads((tmp_path / "index" / "index.json").read_text())
    assert value["format"] == "viaduct-index/3"
    assert value["digest"] == index.digest
    assert value["lineage"] == {
        "job": "index",
        "config": {
            "split": "test",
            "kind": "auto",
            "memory_gib": None,
            "target_recall": 0.99,
            "vectors_per_picture": None,
            "shard_pictures": 1_000_000,
            "seed": 0,
        },
        "parents": [
            {"kind": kind, "digest": shared_family.dataset(kind).digest}
            for kind in ("pairs", "image_embeddings", "text_embeddings")
        ],
        "frozen": {"checkpoint": {"digest": "c" * 64, "stage": 1}},
    }
    (shard,) = value["shards"]
    assert {name: entry["rows"] for name, entry in shard["files"].items()} == {
        "pictures.arrow": 3,
        "picture_vectors.f32": 9,
        "caption_vectors.f32": 3,
    }
    exactly = {"kind": "exact", "width": None, "recall": None, "num_queries": 0}
    assert shard["pictures"] == exactly | {"vectors_per_item": 3}
    assert shard["captions"] == exactly | {"vectors_per_item": 1}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_is_indexed_alone(tmp_path, shared_family, split):
    index = make(tmp_path / "index", shared_family.sources(split=split))
    expected = [n for n, row in enumerate(shared_family.rows) if row["split"] == split and n != 9]
    assert rows_of(index) == expected


def test_pictures_may_be_indexed_without_vectors_of_captions(tmp_path, shared_family):
    index = make(tmp_path / "index", shared_family.sources(with_texts=False))
    assert index.caption_vectors is None
    assert not (tmp_path / "index" / "00000" / "caption_vectors.f32").exists()
    assert index.pictures.column("captions")[3].as_py() == [f"caption {i} of 3" for i in range(3)]


def test_what_was_taken_down_anywhere_is_not_indexed(tmp_path, family):
    for kind, row in (("pairs", 3), ("image_embeddings", 7), ("text_embeddings", 15)):
        add_tombstones(family.dataset(kind).folder, uids([row]))
    index = make(tmp_path / "index", family.sources())
    rows = [row for row in range(16) if row not in (3, 7, 9, 15)]
    assert rows_of(index) == rows
    assert len(index.caption_vectors) == sum(row % 4 for row in rows)
    texts = [text for its in index.pictures.column("captions").to_pylist() for text in its]
    for hit in index.search_captions(family.pictures[:1], 100)[0]:
        assert hit.text in texts
        assert int.from_bytes(hit.uid, "big") in rows


def test_equal_sources_give_equal_indexes_wherever_they_lie(tmp_path, make_family):
    digests = {
        make(tmp_path / name / "index", make_family(tmp_path / name).sources()).digest
        for name in ("a", "b")
    }
    assert len(digests) == 1
    other = make_family(tmp_path / "c", seed=1)
    assert make(tmp_path / "c" / "index", other.sources()).digest not in digests


class Killed(BaseException):
    """What no code here catches."""


STEPS = {
    "while vectors are gathered": (gathering, "shard_embeddings"),
    "before the shard is committed": (building, "commit_shard"),
    "before index.json is written": (building, "publish"),
    "while a file is published": (TemporaryFile, "publish"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_build_that_was_killed_goes_on_to_the_same_index(
    tmp_path, monkeypatch, shared_family, step, calls
):
    whole = make(tmp_path / "whole", shared_family.sources())
    begin(Folder.at(tmp_path / "index"), shared_family.sources().lineage)
    home, name = STEPS[step]
    before, count = getattr(home, name), 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return before(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(home, name, killed)
        try:
            make(tmp_path / "index", shared_family.sources())
        except Killed:
            with pytest.raises(ConfigError, match="index: not finished; run its job again"):
                RetrievalIndex.open(str(tmp_path / "index"))
        else:
            assert count < calls  # the step comes less often
    index = make(tmp_path / "index", shared_family.sources())
    assert index.digest == whole.digest
    for entry in index.manifest.shards[0].files.values():
        content = (tmp_path / "index" / entry.file).read_bytes()
        assert content == (tmp_path / "whole" / entry.file).read_bytes()
    assert index.pictures.equals(read_table(whole.folder, "00000/pictures.arrow"))


def test_a_build_that_was_killed_when_all_was_done_is_done(tmp_path, monkeypatch, shared_family):
    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove_file", killed)
        with pytest.raises(Killed):
            make(tmp_path / "index", shared_family.sources())
    assert begin(Folder.at(tmp_path / "index"), shared_family.sources().lineage) is None
    assert not (tmp_path / "index" / ".draft.json").exists()
    assert RetrievalIndex.open(str(tmp_path / "index"), verify=True).pictures.num_rows == 15


def test_a_finished_build_leaves_nothing_else_behind(tmp_path, shared_family):
    folder = tmp_path / "index"
    begin(Folder.at(folder), shared_family.sources().lineage)
    (folder / f"{TEMPORARY}left-by-a-killed-one").write_text("x")
    (folder / "00000" / ".work").mkdir(parents=True)
    (folder / "00000" / ".work" / f"{TEMPORARY}left-by-a-killed-one").write_text("x")
    make(folder, shared_family.sources())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "00000.json",
        "00000/caption_vectors.f32",
        "00000/picture_vectors.f32",
        "00000/pictures.arrow",
        "index.json",
    }


def test_another_configuration_in_the_same_folder_is_refused(tmp_path, shared_family):
    folder = Folder.at(tmp_path / "index")
    begin(folder, shared_family.sources().lineage)
    with pytest.raises(ConfigError, match=r'begun otherwise \(config.split: "all" there, "test"'):
        begin(folder, shared_family.sources(split="test").lineage)
    digest = make(tmp_path / "index", shared_family.sources()).digest
    with pytest.raises(ConfigError, match=r'made otherwise \(config.split: "all" there, "test"'):
        make(tmp_path / "index", shared_family.sources(split="test"))
    assert begin(folder, shared_family.sources().lineage) is None
    assert make(tmp_path / "index", shared_family.sources()).digest == digest


def test_a_folder_of_something_else_is_refused(tmp_path, shared_family):
    (tmp_path / "photo.jpg").write_text("x")
    for home in (tmp_path, shared_family.home / "pairs"):
        with pytest.raises(ConfigError, match="holds"):
            make(home, shared_family.sources())


def test_a_split_without_pictures_is_refused(tmp_path, family):
    add_tombstones(family.dataset("pairs").folder, uids([1, 5, 13]))
    with pytest.raises(ConfigError, match="image_embeddings: no picture of split 'test'"):
        make(tmp_path / "index", family.sources(split="test"))


def test_datasets_that_do_not_belong_together_are_refused(tmp_path, shared_family, make_family):
    with pytest.raises(ConfigError, match=r"different checkpoints: c{16} and d{16}"):
        make_family(tmp_path, text_checkpoint="d" * 64).sources()
    pairs, images = (shared_family.dataset(kind) for kind in ("pairs", "image_embeddings"))
    fewer = replace(pairs, manifest=replace(pairs.manifest, records=pairs.manifest.records[:2]))
    with pytest.raises(ConfigError, match="do not match: shard 00002 is only in the second"):
        Sources(fewer, images, None, "all")
    with pytest.raises(ConfigError, match="pairs: its lineage names no checkpoint"):
        checkpoint_of(pairs)


def test_captions_other_than_those_embedded_are_refused(tmp_path, shared_family, make_family):
    other = make_family(tmp_path / "other", word="title").dataset("pairs")
    sources = replace(shared_family.sources(), pairs=other)
    with pytest.raises(ConfigError, match=rf"picture {1:032x}: other captions were embedded"):
        make(tmp_path / "index", sources)
    assert make(tmp_path / "pictures", replace(sources, texts=None)).pictures.num_rows == 15


def test_a_damaged_shard_is_named(tmp_path, family):
    path = family.home / "image_embeddings" / "00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"image_embeddings/00001\.arrow"):
        make(tmp_path / "index", family.sources())


def test_progress_counts_every_row(tmp_path, shared_family):
    folder, sources, counts = Folder.at(tmp_path / "index"), shared_family.sources(split="test"), []
    begin(folder, sources.lineage)
    build(folder, sources, counts.append)
    assert counts == [5, 7, 4]


def test_vectors_are_those_of_the_datasets(tmp_path, shared_family):
    make(tmp_path / "index", shared_family.sources())
    stored = np.fromfile(tmp_path / "index" / "00000" / "picture_vectors.f32", "<f4")
    rows = [row for row in range(16) if row != 9]
    np.testing.assert_array_equal(stored.reshape(-1, 3, 8), shared_family.pictures[rows])
    stored = np.fromfile(tmp_path / "index" / "00000" / "caption_vectors.f32", "<f4")
    expected = np.concatenate([shared_family.texts[row] for row in rows])
    np.testing.assert_array_equal(stored.reshape(-1, 8), expected)


# Kinds and index shards


def found_by(index, family) -> list:
    queries = family.pictures[:3]
    return [
        index.search_pictures(queries, 5),
        index.search_texts(queries[:, 0], 5),
        index.search_captions(queries, 5),
    ]


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
@pytest.mark.parametrize("per_picture", [None, 2])
def test_each_kind_finds_what_the_exact_one_finds(tmp_path, shared_family, kind, per_picture):
    whole = make(tmp_path / "exact", shared_family.sources())
    config = IndexConfig(kind=kind, vectors_per_picture=per_picture)
    index = make(tmp_path / kind, replace(shared_family.sources(), config=config))
    assert found_by(index, shared_family) == found_by(whole, shared_family)
    (shard,) = index.manifest.shards
    assert shard.pictures.kind == shard.captions.kind == kind
    assert shard.pictures.vectors_per_item == (per_picture or 3)
    assert shard.files["picture_index.faiss"].rows == 15 * (per_picture or 3)
    assert shard.files["caption_index.faiss"].rows == 23
    assert shard.pictures.recall == shard.captions.recall == 1
    assert f"({kind}, recall 1.000)" in index.summary
    assert index.digest != whole.digest
    names = {path.name for path in (tmp_path / kind / "00000").iterdir()}
    assert names == set(shard.files)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
@pytest.mark.parametrize("pictures", [1, 12])
def test_several_index_shards_find_what_one_finds(tmp_path, shared_family, kind, pictures):
    whole = make(tmp_path / "exact", shared_family.sources())
    config = IndexConfig(kind=kind, shard_pictures=pictures)
    sources = replace(shared_family.sources(), config=config)
    expected = {1: [(0,), (1,), (2,)], 12: [(0, 1), (2,)]}[pictures]
    assert list(sources.index_shards()) == expected
    index = make(tmp_path / "index", sources)
    assert found_by(index, shared_family) == found_by(whole, shared_family)
    assert [shard.number for shard in index.manifest.shards] == list(range(len(expected)))
    assert sum(shard.num_pictures for shard in index.manifest.shards) == 15
    again = make(tmp_path / "again", sources)
    assert again.digest == index.digest


def test_an_index_shard_may_be_empty(tmp_path, shared_family):
    config = IndexConfig(shard_pictures=1)
    add = replace(shared_family.sources(split="validation"), config=config)
    index = make(tmp_path / "index", add)
    rows = [row for row in range(16) if row % 4 == 3]
    assert rows_of(index) == rows
    whole = make(tmp_path / "whole", shared_family.sources(split="validation"))
    assert found_by(index, shared_family) == found_by(whole, shared_family)


def test_an_index_shard_that_is_made_is_not_made_again(tmp_path, monkeypatch, shared_family):
    sources = replace(shared_family.sources(), config=IndexConfig(shard_pictures=1))
    whole = make(tmp_path / "whole", sources)
    folder, counts = Folder.at(tmp_path / "index"), []
    begin(folder, sources.lineage)
    building.build_shard(folder, sources, 1, (1,), counts.append)
    with monkeypatch.context() as patch:
        gathered = []
        patch.setattr(
            building, "gather", lambda *given: gathered.append(given[3]) or gather(*given)
        )
        build(folder, sources, counts.append)
    assert gathered == [(0,), (2,)]
    assert counts == [7, 5, 7, 4]
    assert RetrievalIndex.open(folder, verify=True).digest == whole.digest


def test_tombstones_act_on_every_kind_at_once(tmp_path, shared_family):
    for kind in ("exact", "hnsw", "ivf", "ivfpq"):
        config = IndexConfig(kind=kind, shard_pictures=12)
        index = make(tmp_path / kind, replace(shared_family.sources(), config=config))
        add_tombstones(index.folder, uids([3, 7, 15]))
        again = RetrievalIndex.open(index.folder)
        for found in again.search_pictures(shared_family.pictures[[3, 7, 15]], 16):
            rows = {int.from_bytes(picture.uid, "big") for picture in found}
            assert rows == set(range(16)) - {3, 7, 9, 15}
        (captions,) = again.search_captions(shared_family.pictures[:1], 100)
        assert len(captions) == 23 - 9
