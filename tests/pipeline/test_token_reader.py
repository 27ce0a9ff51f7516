"""Tokens come into a batch as they were stored, whatever lies beside them in the files."""

import numpy as np
import pytest
import torch

from pipeline import token_reader
from pipeline.dataset import Dataset
from pipeline.erasure import erase
from pipeline.errors import DatasetError
from pipeline.token_reader import ShardTokens, TokenReader, has_tokens

SHARDS = (40, 7, 16)
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float16, or the bits that torch stores of a bfloat16."""
    tensor = torch.from_numpy(values).to(KINDS[dtype])
    return tensor.numpy() if dtype == "fp16" else tensor.view(torch.uint16).numpy()


@pytest.fixture(scope="module")
def features(tmp_path_factory, cached):
    home = tmp_path_factory.mktemp("tokens")
    return {dtype: cached.make_features(home / dtype, dtype, SHARDS) for dtype in KINDS}


def test_int8_is_read_as_float16_and_its_channels_outlive_an_erasure(tmp_path, cached):
    dataset = cached.make_features(tmp_path / "features", "int8", null=(15, 16))
    for rows in ([39, 31, 14, 17, 0], [39, 31, 14, 0]):
        tokens = ShardTokens(dataset.shard(0), dataset.manifest.rows_per_batch)
        found = tokens.read(rows)
        assert (found.dtype, tokens.dtype) == (np.float16, np.float16)
        assert 0.01 < np.abs(found - cached.values(rows)).max() < 0.15  # of values 9 wide
        erase(dataset, {cached.uid(17), cached.uid(3)})
        dataset = Dataset.open(dataset.folder)
    assert np.flatnonzero(~has_tokens(dataset.shard(0))).tolist() == [3, 15, 16, 17]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("null", [(), (0,), (15, 16, 17), tuple(range(32))])
def test_rows_are_read_across_record_batches_beside_null_ones(tmp_path, cached, dtype, null):
    dataset = cached.make_features(tmp_path / "features", dtype, null=null)
    tokens = ShardTokens(dataset.shard(0), dataset.manifest.rows_per_batch)
    rows = [row for row in (39, 31, 15, 16, 0, 17, 32, 38) if row not in null]
    found = tokens.read(rows)
    np.testing.assert_array_equal(found, stored(cached.values(rows), dtype))
    assert (found.shape[1:], found.dtype) == (tokens.shape, tokens.dtype)
    assert tokens.shape == cached.shape
    assert np.flatnonzero(~has_tokens(dataset.shard(0))).tolist() == list(null)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_batch_is_gathered_from_all_shards_into_the_memory_it_is_given(features, cached, dtype):
    first = np.cumsum([0, *SHARDS])
    dice = np.random.default_rng(0)
    places = [(s, int(dice.integers(SHARDS[s]))) for s in dice.integers(len(SHARDS), size=30)]
    rows = [int(first[shard] + row) for shard, row in places]
    reader = TokenReader(features[dtype])
    out = np.full((32, *cached.shape), 7, reader.shard(0).dtype)
    reader.gather(places, out[1:31])
    np.testing.assert_array_equal(out[1:31], stored(cached.values(rows), dtype))
    assert (out[[0, 31]] == 7).all()
    np.testing.assert_array_equal(reader.read(places), out[1:31])


def test_what_is_read_is_a_copy(features):
    """The files are mapped: writing into a batch must change no dataset."""
    reader = TokenReader(features["fp16"])
    before = reader.read([(0, 3)])
    reader.read([(0, 3)])[:] = 0
    np.testing.assert_array_equal(reader.read([(0, 3)]), before)


def test_few_shards_are_open_at_once(features, cached, monkeypatch):
    monkeypatch.setattr(token_reader, "OPEN_SHARDS", 2)
    opened = []
    open_shard = Dataset.shard
    monkeypatch.setattr(
        Dataset, "shard", lambda self, number: opened.append(number) or open_shard(self, number)
    )
    reader = TokenReader(features["fp16"])
    places = [(0, 1), (1, 1), (0, 2), (2, 1), (0, 3), (1, 2)]
    found = np.stack([reader.read([place])[0] for place in places])
    assert opened == [0, 1, 2, 1]
    np.testing.assert_array_equal(found, stored(cached.values([1, 41, 2, 48, 3, 42]), "fp16"))


def test_a_shard_that_is_gone_is_named(tmp_path, cached):
    features = cached.make_features(tmp_path / "features")
    (tmp_path / "features" / "00001.arrow").unlink()
    reader = TokenReader(features)
    reader.read([(0, 0)])
    with pytest.raises(DatasetError, match=r"00001\.arrow"):
        reader.read([(0, 0), (1, 0)])
