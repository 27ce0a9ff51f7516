"""An opened index answers with what is to be shown, and never with what was taken down."""

import numpy as np
import pytest

from indexes.building import build
from indexes.exact import on_grid
from indexes.retrieval import FoundCaption, FoundPicture, RetrievalIndex
from indexes.storage import begin
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones

SHARDS = [(shard, row) for shard, rows in enumerate((5, 7, 4)) for row in range(rows)]


def make(home, sources) -> RetrievalIndex:
    folder = Folder.at(home)
    begin(folder, sources.lineage)
    build(folder, sources, lambda count: None)
    return RetrievalIndex.open(folder)


@pytest.fixture
def index(tmp_path, shared_family):
    return make(tmp_path / "index", shared_family.sources())


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pictures_by_hand(family, query, k, down=(9,)) -> list[FoundPicture]:
    """The query's vectors [A, E] against all vectors of all pictures."""
    scored = [
        ((on_grid(query) @ on_grid(family.pictures[row]).T).max(), row)
        for row in range(16)
        if row not in down
    ]
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:k]
    return [
        FoundPicture(
            score,
            family.rows[row]["uid"],
            family.rows[row]["url"],
            [c["text"] for c in family.rows[row]["captions"] if c["status"] == "kept"],
            *SHARDS[row],
        )
        for score, row in best
    ]


def captions_by_hand(family, query, k, down=(9,)) -> list[FoundCaption]:
    scored = [
        ((on_grid(query) @ on_grid(vector)).max(), f"caption {i} of {row}", row)
        for row in range(16)
        if row not in down
        for i, vector in enumerate(family.texts[row])
    ]
    best = sorted(scored, key=lambda found: -found[0])[:k]
    return [FoundCaption(score, text, row.to_bytes(16, "big")) for score, text, row in best]


@pytest.mark.parametrize("k", [1, 4, 100])
def test_texts_find_pictures_pictures_find_pictures_and_captions(index, shared_family, k):
    texts, pictures = unit(5, 8, seed=7), unit(5, 3, 8, seed=8)
    assert index.search_texts(texts, k) == [
        pictures_by_hand(shared_family, text[None], k) for text in texts
    ]
    assert index.search_pictures(pictures, k) == [
        pictures_by_hand(shared_family, picture, k) for picture in pictures
    ]
    assert index.search_captions(pictures, k) == [
        captions_by_hand(shared_family, picture, k) for picture in pictures
    ]


def test_a_picture_finds_itself_first(index, shared_family):
    for row in (0, 8, 10, 15):
        (found,) = index.search_pictures(shared_family.pictures[row : row + 1], 3)
        assert found[0].uid == row.to_bytes(16, "big")
        assert found[0].score == pytest.approx(1, abs=1e-6)
        assert (found[0].shard, found[0].row) == SHARDS[row]


def test_tombstones_of_the_index_act_at_once_and_move_nothing(index, shared_family):
    query = unit(1, 3, 8, seed=3)
    first = index.search_pictures(query, 16)[0]
    down = [int.from_bytes(found.uid, "big") for found in first[:4]]
    add_tombstones(index.folder, [found.uid for found in first[:4]])
    again = RetrievalIndex.open(index.folder, verify=True)
    assert again.digest == index.digest
    assert again.search_pictures(query, 16)[0] == first[4:]
    for k in (1, 5, 100):
        assert again.search_texts(query[0, :1], k) == [
            pictures_by_hand(shared_family, query[0, :1], k, (9, *down))
        ]
        assert again.search_captions(query, k) == [
            captions_by_hand(shared_family, query[0], k, (9, *down))
        ]


def test_an_index_of_one_split_finds_that_split_alone(tmp_path, shared_family):
    index = make(tmp_path / "test", shared_family.sources(split="test"))
    others = [row for row in range(16) if shared_family.rows[row]["split"] != "test"]
    query = unit(1, 3, 8)
    assert index.search_pictures(query, 16) == [
        pictures_by_hand(shared_family, query[0], 16, (9, *others))
    ]
    assert index.search_captions(query, 16) == [
        captions_by_hand(shared_family, query[0], 16, (9, *others))
    ]


def test_captions_cannot_be_found_where_none_are_indexed(tmp_path, shared_family):
    index = make(tmp_path / "pictures", shared_family.sources(with_texts=False))
    with pytest.raises(ConfigError, match="pictures: holds no captions"):
        index.search_captions(unit(1, 3, 8), 1)


def test_another_checkpoint_is_refused_in_one_line_that_names_both(index):
    index.check_checkpoint("c" * 64, "stage1")
    with pytest.raises(ConfigError) as no:
        index.check_checkpoint("d" * 64, "runs/stage1")
    text = str(no.value)
    assert str(index.folder) in text
    assert "runs/stage1" in text
    assert "c" * 16 in text
    assert "d" * 16 in text
    assert "\n" not in text
