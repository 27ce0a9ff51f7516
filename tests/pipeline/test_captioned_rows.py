"""Pictures of a split that are there with tokens are captioned, the first ones up to a limit."""

import numpy as np
import pytest

from pipeline.captioned_rows import CaptionedRows
from pipeline.dataset import Dataset
from pipeline.erasure import erase
from pipeline.tombstones import add_tombstones

SHARDS = (40, 7, 16)
FIRST = (0, 40, 47)


@pytest.fixture
def family(tmp_path, cached) -> tuple[Dataset, Dataset]:
    """Features, of which rows 0 and 3 have no tokens, and pairs."""
    features = cached.make_features(tmp_path / "features", shards=SHARDS, null=(0, 3))
    return features, cached.make_pairs(tmp_path / "pairs", SHARDS)


def again(*datasets: Dataset) -> list[Dataset]:
    return [Dataset.open(dataset.folder) for dataset in datasets]


def of_split(cached, split: str, number: int) -> list[int]:
    first, size = FIRST[number], SHARDS[number]
    splits = [cached.splits[row % len(cached.splits)] for row in range(first, first + size)]
    return [n for n, its in enumerate(splits) if split in ("all", its)]


@pytest.mark.parametrize("split", ["all", "train", "test"])
def test_they_are_of_the_split_and_have_tokens(family, cached, split):
    features, pairs = family
    rows = CaptionedRows(features, (pairs,), split)
    for number in range(len(SHARDS)):
        expected = [n for n in of_split(cached, split, number) if number or n not in (0, 3)]
        assert rows.of(number).tolist() == expected


def test_what_was_taken_down_anywhere_counts_neither_in_rows_nor_in_the_limit(
    tmp_path, family, cached
):
    features, pairs = family
    captions = cached.make_pairs(tmp_path / "captions", SHARDS)
    gone = [5, 6, 7]
    for row, dataset in zip(gone, (features, pairs, captions), strict=True):
        add_tombstones(dataset.folder, [cached.uid(row)])
    erase(captions, {cached.uid(7)})
    features, *beside = again(features, captions, pairs)
    rows = CaptionedRows(features, tuple(beside), "all")
    left = [row for row in range(40) if row not in (0, 3, *gone)]
    assert rows.of(0).tolist() == left
    assert rows.counts(range(3), None) == {0: 35, 1: 7, 2: 16}
    assert rows.counts(range(3), 37) == {0: 35, 1: 2, 2: 0}


@pytest.mark.parametrize("limit", [1, 35, 38, 39, 60, 61, 99])
def test_the_first_ones_are_counted_up_to_the_limit(family, limit):
    features, pairs = family
    rows = CaptionedRows(features, (pairs,), "all")
    every = np.concatenate([np.full(38, 0), np.full(7, 1), np.full(16, 2)])
    expected = np.bincount(every[:limit], minlength=3).tolist()
    assert list(rows.counts(range(3), limit).values()) == expected


def test_shards_behind_the_limit_and_features_of_no_picture_are_not_opened(family, monkeypatch):
    features, pairs = family
    opened = []
    shard = Dataset.shard

    def noted(self, number, **options):
        opened.append((self.kind, number))
        return shard(self, number, **options)

    monkeypatch.setattr(Dataset, "shard", noted)
    CaptionedRows(features, (pairs,), "all").counts(range(3), 5)
    assert {number for _, number in opened} == {0}
    opened.clear()
    assert CaptionedRows(features, (pairs,), "of nobody").of(1).tolist() == []
    assert opened == [("pairs", 1)]
