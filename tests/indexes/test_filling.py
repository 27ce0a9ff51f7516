"""A proposer that was killed while it was filled goes on to the same bytes."""

import faiss
import numpy as np
import pytest

from indexes import filling
from indexes.faiss_files import read_proposer, write_proposer
from indexes.filling import filled
from indexes.merging import merged
from indexes.proposer import Proposer, Width
from pipeline.errors import DatasetError
from pipeline.storage import Folder

KINDS = ["hnsw", "ivf", "ivfpq"]


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    faiss.omp_set_num_threads(1)  # or HNSW's links would depend on who comes first
    monkeypatch.setattr(filling, "_VECTORS_AT_ONCE", 100)
    monkeypatch.setattr(filling, "_SAVE_EVERY_S", 0.0)


def content(proposer: Proposer) -> bytes:
    return faiss.serialize_index(proposer.index).tobytes()


class Killed(BaseException):
    """What no code here catches."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_item", [4, 2])
@pytest.mark.parametrize("adds", [0, 1, 5])
def test_killed_after_some_steps_it_goes_on(tmp_path, monkeypatch, kind, per_item, adds):
    vectors = unit(300, 4, 16)
    whole = filled(Folder.at(tmp_path / "whole"), "x", vectors, per_item, kind, 0)
    work, add, count = Folder.at(tmp_path / "work"), Proposer.add, 0

    def killed(proposer, block):
        nonlocal count
        if count == adds:
            raise Killed
        count += 1
        add(proposer, block)

    with monkeypatch.context() as patch:
        patch.setattr(Proposer, "add", killed)
        with pytest.raises(Killed):
            filled(work, "x", vectors, per_item, kind, 0)
    assert work.files() == [f"x-{25 * adds:012d}.faiss"]

    def trained(*given):
        raise AssertionError("is trained already")

    monkeypatch.setattr(Proposer, "trained", trained)
    assert content(filled(work, "x", vectors, per_item, kind, 0)) == content(whole)
    assert len(whole) == 300 * per_item


def test_what_was_saved_and_cannot_be_read_is_made_anew(tmp_path):
    vectors, work = unit(60, 2, 16), Folder.at(tmp_path)
    work.publish("x-000000000050.faiss", b"nonsense")
    whole = filled(Folder.at(tmp_path / "whole"), "x", vectors, 2, "ivf", 0)
    assert content(filled(work, "x", vectors, 2, "ivf", 0)) == content(whole)


def test_merged_vectors_are_those_of_the_items(tmp_path):
    vectors = unit(90, 4, 16)
    proposer = filled(Folder.at(tmp_path), "x", vectors, 2, "ivf", 0)
    flat = merged(vectors, 2).reshape(-1, 16)
    _, numbers = proposer.search(flat, Width(proposer.lists, 1))
    assert (numbers[:, 0] == np.arange(180)).mean() > 0.95  # but for what a byte a value loses


@pytest.mark.parametrize("kind", KINDS)
def test_a_proposer_comes_back_as_it_was_written(tmp_path, kind):
    folder, vectors = Folder.at(tmp_path), unit(500, 16)
    proposer = Proposer.trained(kind, vectors, 500, 0)
    proposer.add(vectors)
    entry = write_proposer(folder, "x.faiss", proposer)
    assert (entry.rows, entry.bytes) == (500, (tmp_path / "x.faiss").stat().st_size)
    opened = read_proposer(folder, "x.faiss", kind)
    width, queries = Width(8, 50), unit(7, 16, seed=1)
    for mine, its in zip(
        opened.search(queries, width), proposer.search(queries, width), strict=True
    ):
        np.testing.assert_array_equal(mine, its)
    for other in KINDS:
        if other != kind:
            with pytest.raises(DatasetError, match=rf"x\.faiss: is no {other} index"):
                read_proposer(folder, "x.faiss", other)


def test_lists_stay_on_disk(tmp_path):
    folder, vectors = Folder.at(tmp_path), unit(500, 16)
    proposer = Proposer.trained("ivf", vectors, 500, 0)
    proposer.add(vectors)
    write_proposer(folder, "x.faiss", proposer)
    index = read_proposer(folder, "x.faiss", "ivf").index
    assert isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.OnDiskInvertedLists)


def test_a_damaged_file_is_named(tmp_path):
    folder = Folder.at(tmp_path)
    folder.publish("x.faiss", b"\xff" * 1000)
    with pytest.raises(DatasetError, match=r"x\.faiss: cannot be read"):
        read_proposer(folder, "x.faiss", "ivf")
    with pytest.raises(DatasetError, match=r"nowhere\.faiss: cannot be read"):
        read_proposer(folder, "nowhere.faiss", "hnsw")
