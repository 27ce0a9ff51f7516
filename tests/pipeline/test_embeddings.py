"""Embeddings keep their values, their picture and their caption on the way to disk and back."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.accounting import Account
from pipeline.captions import kept_texts
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.embeddings import (
    first_rows,
    image_rows,
    read_embeddings,
    shard_embeddings,
    split_rows,
    text_rows,
    texts_digest,
)
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.schemas import (
    CAPTION,
    PAIRS,
    ROWS_PER_BATCH,
    image_embeddings_schema,
    text_embeddings_schema,
)
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones
from pipeline.verify import verify

Q, E = 3, 4


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def caption(text: str, status: str = "kept") -> dict[str, str]:
    return {"text": text, "source": "web", "status": status}


CAPTIONS = [
    [caption("a"), caption("", "rejected:empty"), caption("b")],
    [],
    None,  # taken down
    [caption("", "rejected:empty")],
    [caption("c")],
    [caption("d"), caption("e"), caption("f")],
]
NUM_KEPT = [2, 0, 0, 0, 1, 3]


def publish(home, kind: str, tables: list[pa.Table]) -> Dataset:
    draft = Draft.begin(Folder.at(home), kind, tables[0].schema, Lineage("test", {}))
    for number, table in enumerate(tables):
        everything = Account.all_kept(table.num_rows)
        commit_table(draft.folder, number, table, draft.rows_per_batch, pictures=everything)
    return draft.publish(draft.committed().values())


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    for kind in ("image_embeddings", "text_embeddings"):
        monkeypatch.setitem(ROWS_PER_BATCH, kind, 4)


@pytest.fixture
def datasets(tmp_path):
    """Three shards of six rows as `CAPTIONS` has them, with batches of four rows."""
    images, texts = [], []
    for shard in range(3):
        uids = [uid(10 * shard + row) for row in range(6)]
        present = [captions is not None for captions in CAPTIONS]
        images.append(image_rows(uids, unit(5, Q, E, seed=shard), present))
        texts.append(text_rows(uids, CAPTIONS, unit(6, E, seed=100 + shard)))
    return (
        publish(tmp_path / "images", "image_embeddings", images),
        publish(tmp_path / "texts", "text_embeddings", texts),
    )


def test_kept_captions_are_counted_among_all_of_their_row():
    expected = [[(0, "a"), (2, "b")], [], [], [], [(0, "c")], [(0, "d"), (1, "e"), (2, "f")]]
    assert kept_texts(CAPTIONS) == expected
    assert kept_texts(pa.chunked_array([pa.array(CAPTIONS, pa.list_(CAPTION))])) == expected


def test_the_digest_of_texts_tells_where_one_ends():
    by_hand = b"\2\0\0\0\0\0\0\0\xc3\xa9" + b"\1\0\0\0\0\0\0\0a"
    assert texts_digest(["\u00e9", "a"]) == hashlib.sha256(by_hand).digest()
    assert len({texts_digest(t) for t in ([], [""], ["ab"], ["a", "b"], ["b", "a"])}) == 5


def test_tables_have_the_schemas_of_their_kinds():
    present = [captions is not None for captions in CAPTIONS]
    uids = [uid(row) for row in range(6)]
    images = image_rows(uids, unit(5, Q, E), present)
    assert images.schema.equals(image_embeddings_schema(Q, E))
    assert images.column("vectors").is_valid().to_pylist() == present
    texts = text_rows(uids, CAPTIONS, unit(6, E, seed=1))
    assert texts.schema.equals(text_embeddings_schema(E))
    rows = texts.to_pylist()
    assert [row["ordinals"] for row in rows] == [[0, 2], [], None, [], [0], [0, 1, 2]]
    assert [row["vectors"] for row in rows] == [
        unit(6, E, seed=1)[:2].tolist(),
        [],
        None,
        [],
        unit(6, E, seed=1)[2:3].tolist(),
        unit(6, E, seed=1)[3:].tolist(),
    ]
    assert [row["texts_digest"] for row in rows] == [
        None if captions is None else texts_digest(text for _, text in kept_texts([captions])[0])
        for captions in CAPTIONS
    ]


def test_vectors_come_back_with_their_places(datasets):
    images, texts = datasets
    assert list(verify(images)) == []
    assert list(verify(texts)) == []
    found = read_embeddings(images, texts)
    assert found.rows.tolist() == [6 * shard + row for shard in range(3) for row in (0, 1, 3, 4, 5)]
    np.testing.assert_array_equal(
        found.pictures, np.concatenate([unit(5, Q, E, seed=shard) for shard in range(3)])
    )
    np.testing.assert_array_equal(
        found.texts, np.concatenate([unit(6, E, seed=100 + shard) for shard in range(3)])
    )
    assert found.ordinals.tolist() == [0, 2, 0, 0, 1, 2] * 3
    expected = [5 * shard + picture for shard in range(3) for picture in (0, 0, 3, 4, 4, 4)]
    assert found.owners.tolist() == expected
    assert found.pictures.dtype == found.texts.dtype == np.float32
    assert first_rows(images) == {0: 0, 1: 6, 2: 12}


def reference(datasets, keep) -> tuple[list, list]:
    """(row, vectors) of pictures and (row, ordinal, vector) of captions, from Python lists."""
    images, texts = datasets
    pictures, captions = [], []
    row = -1
    for number in images.records:
        image_shard, text_shard = images.shard(number), texts.shard(number)
        for a, b in zip(image_shard.table.to_pylist(), text_shard.table.to_pylist(), strict=True):
            row += 1
            down = a["uid"] in images.tombstones | texts.tombstones
            if a["vectors"] is None or down or not keep[row]:
                continue
            pictures.append((row, np.reshape(a["vectors"], (Q, E)).tolist()))
            captions += [(row, *pair) for pair in zip(b["ordinals"], b["vectors"], strict=True)]
    return pictures, captions


def as_lists(found) -> tuple[list, list]:
    rows = found.rows[found.owners].tolist()
    return (
        list(zip(found.rows.tolist(), found.pictures.tolist(), strict=True)),
        list(zip(rows, found.ordinals.tolist(), found.texts.tolist(), strict=True)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_rows_taken_down_or_not_wanted_are_left_out_with_their_captions(datasets, seed):
    dice = np.random.default_rng(seed)
    for dataset in datasets:
        numbers = dice.choice(30, 4, replace=False).tolist()
        add_tombstones(dataset.folder, [uid(number) for number in numbers])
    datasets = tuple(Dataset.open(dataset.folder) for dataset in datasets)
    keep = dice.random(18) < (1.0, 0.6, 0.2, 0.0)[seed]
    found = read_embeddings(*datasets, keep)
    assert as_lists(found) == reference(datasets, keep)
    assert found.pictures.shape == (len(found.rows), Q, E)
    assert found.texts.shape == (len(found.owners), E)
    everything = np.ones(18, bool)
    assert as_lists(read_embeddings(*datasets)) == reference(datasets, everything)


def test_captions_of_a_picture_without_vectors_are_left_out(tmp_path):
    uids = [uid(row) for row in range(6)]
    present = [row != 4 for row in range(6)]
    datasets = (
        publish(tmp_path / "i", "image_embeddings", [image_rows(uids, unit(5, Q, E), present)]),
        publish(tmp_path / "t", "text_embeddings", [text_rows(uids, CAPTIONS, unit(6, E))]),
    )
    found = read_embeddings(*datasets)
    assert found.rows.tolist() == [0, 1, 3, 5]  # row 2 was taken down from the texts
    assert found.owners.tolist() == [0, 0, 3, 3, 3]
    assert as_lists(found)[1] == [
        (row, ordinal, unit(6, E)[number].tolist())
        for number, row, ordinal in [(0, 0, 0), (1, 0, 2), (3, 5, 0), (4, 5, 1), (5, 5, 2)]
    ]


def test_a_shard_without_texts_has_pictures_alone(datasets):
    found = shard_embeddings(datasets[0].shard(1))
    assert found.rows.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(found.pictures, unit(5, Q, E, seed=1))
    assert found.texts.shape == (0, E)
    assert len(found.owners) == len(found.ordinals) == 0


def test_a_shard_with_nothing_in_it_reads_as_nothing(tmp_path):
    uids = [uid(row) for row in range(5)]
    images = image_rows(uids, np.zeros((0, Q, E), np.float32), [False] * 5)
    texts = text_rows(uids, [None] * 5, np.zeros((0, E), np.float32))
    images = publish(tmp_path / "i", "image_embeddings", [images, images.slice(0, 0)])
    texts = publish(tmp_path / "t", "text_embeddings", [texts, texts.slice(0, 0)])
    found = read_embeddings(images, texts)
    assert found.pictures.shape == (0, Q, E)
    assert found.texts.shape == (0, E)


def test_a_dataset_without_shards_is_the_users_to_mend(tmp_path, datasets):
    draft = Draft.begin(
        Folder.at(tmp_path / "e"),
        "image_embeddings",
        image_embeddings_schema(Q, E),
        Lineage("test", {}),
    )
    with pytest.raises(ConfigError, match="/e: holds no picture"):
        read_embeddings(draft.publish([]), datasets[1])


def test_a_mask_of_another_length_is_refused(datasets):
    with pytest.raises(ValueError, match="keep has 17 rows"):
        read_embeddings(*datasets, np.ones(17, bool))


def test_equal_rows_are_equal_bytes_whatever_lies_under_a_null(tmp_path, datasets):
    for dataset in datasets:
        again = [shard.table for shard in dataset.shards()]
        # In other chunks, and with other rows before them.
        again = [pa.concat_tables([table.slice(3), table]).slice(3) for table in again]
        assert publish(tmp_path / f"{dataset.kind}-again", dataset.kind, again).digest == (
            dataset.digest
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_a_vector_that_is_not_normalised_names_its_picture(value):
    uids = [uid(row) for row in range(4)]
    vectors = unit(3, Q, E)
    vectors[1, 2] = value
    with pytest.raises(ConfigError, match=rf"picture {2:032x}: an embedding of length .* 1: the"):
        image_rows(uids, vectors, [True, False, True, True])
    texts = unit(3, E)
    texts[2] = value
    captions = [[caption("a"), caption("b")], None, [], [caption("c")]]
    with pytest.raises(ConfigError, match=rf"picture {3:032x}: an embedding of length"):
        text_rows(uids, captions, texts)


@pytest.mark.parametrize("count", [5, 7])
def test_as_many_vectors_as_kept_captions_are_needed(count):
    with pytest.raises(ValueError, match=f"{count} vectors, but 6 captions"):
        text_rows([uid(row) for row in range(6)], CAPTIONS, unit(count, E))


@given(st.lists(st.one_of(st.none(), st.lists(st.booleans(), max_size=4)), max_size=12))
def test_any_captions_give_as_many_ordinals_as_vectors(rows):
    captions = [
        None if row is None else [caption("x", "kept" if kept else "rejected:y") for kept in row]
        for row in rows
    ]
    vectors = unit(sum(sum(row or []) for row in rows), E)
    table = text_rows([uid(row) for row in range(len(rows))], captions, vectors)
    table.validate(full=True)
    ordinals = [None if row is None else np.flatnonzero(row).tolist() for row in rows]
    assert table.column("ordinals").to_pylist() == ordinals
    lists = table.column("vectors").to_pylist()
    assert [None if row is None else len(row) for row in lists] == [
        None if row is None else sum(row) for row in rows
    ]
    assert [vector for row in lists for vector in row or []] == vectors.tolist()


def test_the_rows_of_a_split_are_counted_over_all_shards(tmp_path):
    splits = [["train", "test", "train"], ["test"], ["validation", "test"]]
    rows = iter(range(6))
    tables = [
        pa.Table.from_pylist([{"uid": uid(next(rows)), "split": s} for s in shard], PAIRS)
        for shard in splits
    ]
    draft = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, Lineage("test", {}))
    for number, table in enumerate(tables):
        everything = Account.all_kept(table.num_rows)
        commit_table(draft.folder, number, table, 2, pictures=everything, captions=everything)
    pairs = draft.publish(draft.committed().values())
    assert np.flatnonzero(split_rows(pairs, "test")).tolist() == [1, 3, 5]
    assert not split_rows(pairs, "nothing").any()
