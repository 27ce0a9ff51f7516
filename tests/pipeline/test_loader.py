"""Batches hold the tokens as cached, a kept caption each, and nothing that was taken down."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.loader import Pairs, ahead, as_tensor
from pipeline.tombstones import add_tombstones

SHARDS = (40, 7)
"""Rows of each shard."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("loader")


@pytest.fixture(scope="module")
def pairs(home, cached):
    return cached.make_pairs(home / "pairs")


@pytest.fixture(scope="module")
def features(home, cached):
    return {dtype: cached.make_features(home / dtype, dtype) for dtype in ("fp16", "bf16")}


SPLITS = ("train", "train", "test", "train", "validation")
"""Of the rows, over and over."""


def expected_rows(split: str, without: Sequence[int] = ()) -> list[int]:
    """Rows over all shards that `Pairs` must hold."""
    in_split = [row for row in range(sum(SHARDS)) if SPLITS[row % len(SPLITS)] == split]
    return [row for row in in_split if row % 4 and row not in without]


def read_all(features: Dataset, pairs: Dataset) -> torch.Tensor:
    found = Pairs(features, pairs, "train")
    return found.tokens(range(len(found)))


def rows_held(pairs: Pairs) -> list[int]:
    places = pairs.parts[0].places(np.arange(len(pairs)))
    first = dict(enumerate(np.cumsum([0, *SHARDS]).tolist()))
    return [first[shard] + row for shard, row in places]


# Which pictures


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_only_the_split_and_only_captions_in_use(features, pairs, split):
    found = Pairs(features["fp16"], pairs, split)
    rows = expected_rows(split)
    assert rows_held(found) == rows
    assert len(found) == len(rows)
    texts = [[f"caption {n} of {row}" for n in range(row % 4)] for row in rows]
    assert found.texts(np.arange(len(rows))) == texts
    assert list(found.all_texts()) == [text for its in texts for text in its]
    ends = np.searchsorted(rows, np.cumsum(SHARDS))
    assert found.parts[0].shard_sizes.tolist() == np.diff(ends, prepend=0).tolist()
    without = [r for r in range(0, sum(SHARDS), 4) if SPLITS[r % len(SPLITS)] == split]
    assert found.parts[0].num_without_caption == len(without)


@pytest.mark.parametrize("of", ["pairs", "features"])
def test_what_was_taken_down_from_either_dataset_is_left_out(tmp_path, of, cached):
    pairs, features = (
        cached.make_pairs(tmp_path / "pairs"),
        cached.make_features(tmp_path / "features"),
    )
    down = [1, 8, 41]  # 8 has no caption in use, 41 is in the second shard
    add_tombstones((pairs if of == "pairs" else features).folder, [cached.uid(row) for row in down])
    found = Pairs(
        Dataset.open(features.folder, "features"), Dataset.open(pairs.folder, "pairs"), "train"
    )
    assert rows_held(found) == expected_rows("train", without=down)
    whole = Pairs(features, pairs, "train")
    assert found.parts[0].num_without_caption == whole.parts[0].num_without_caption - 1


def test_a_picture_without_tokens_is_left_out(tmp_path, pairs, cached):
    """Taken down before its features were made, and in no list that is here."""
    null = [1, 16, 18, 41]
    features = cached.make_features(tmp_path / "features", null=null)
    found = Pairs(features, pairs, "train")
    rows = expected_rows("train", without=null)
    assert rows_held(found) == rows
    np.testing.assert_array_equal(
        read_all(features, pairs).numpy(), cached.values(rows).astype("f2")
    )


def test_an_empty_split_is_named(tmp_path, features, pairs, cached):
    with pytest.raises(ConfigError, match=r"pairs: its split 'other' has no picture with a kept"):
        Pairs(features["fp16"], pairs, "other")
    # Row 0, the only one, has no caption in use.
    lonely = (
        cached.make_pairs(tmp_path / "pairs", (1,)),
        cached.make_features(tmp_path / "f", "fp16", (1,)),
    )
    with pytest.raises(ConfigError, match="its split 'train' has no picture"):
        Pairs(lonely[1], lonely[0], "train")


@pytest.mark.parametrize("shards", [(40, 6), (40,), (7, 40)])
def test_datasets_that_do_not_match_are_both_named(tmp_path, pairs, shards, cached):
    other = cached.make_features(tmp_path / "features", shards=shards)
    with pytest.raises(ConfigError) as error:
        Pairs(other, pairs, "train")
    assert str(other.folder) in str(error.value)
    assert str(pairs.folder) in str(error.value)


# Their tokens


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_tokens_are_those_that_were_stored(features, pairs, dtype, cached):
    found = Pairs(features[dtype], pairs, "train")
    rows = expected_rows("train")
    kind = torch.float16 if dtype == "fp16" else torch.bfloat16
    expected = torch.from_numpy(cached.values(rows)).to(kind)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    tokens = found.tokens(order)
    assert tokens.dtype == kind
    assert tokens.shape == (len(rows), *cached.shape)
    assert torch.equal(tokens, expected[order])
    for number in (0, len(rows) - 1):
        assert torch.equal(found.tokens([number]), expected[number : number + 1])


def test_memory_is_used_again_once_nothing_refers_to_it(features, pairs, cached):
    found = Pairs(features["bf16"], pairs, "train")
    expected = torch.from_numpy(cached.values(expected_rows("train"))).to(torch.bfloat16)
    first = found.tokens([0, 1])
    at, part = first.data_ptr(), first[1].t()
    del first
    second = found.tokens([2, 3])
    assert second.data_ptr() != at  # `part` lies there
    assert torch.equal(part, expected[1].t())
    del part
    weight = torch.ones(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    third = found.tokens([4, 5])
    assert third.data_ptr() == at
    loss = (third * weight).sum()
    del third
    fourth = found.tokens([6, 7])
    assert fourth.data_ptr() not in (at, second.data_ptr())  # the graph holds it
    loss.backward()
    assert torch.equal(weight.grad, expected[4:6])
    del loss
    assert found.tokens([8, 9]).data_ptr() == at
    assert found.tokens([8]).shape == (1, 3, 5)  # of another size


def test_bf16_bits_become_bfloat16_in_the_same_memory():
    bits = np.array([[[0x3F80, 0xC000]]], np.uint16)
    tensor = as_tensor(bits)
    assert tensor.tolist() == [[[1.0, -2.0]]]
    bits[0, 0, 0] = 0x4000
    assert tensor[0, 0, 0] == 2.0


def test_a_shard_that_is_gone_is_named(tmp_path, pairs, cached):
    features = cached.make_features(tmp_path / "features")
    (tmp_path / "features" / "00001.arrow").unlink()
    with pytest.raises(DatasetError, match=r"00001\.arrow"):
        read_all(features, pairs)


# Their captions


def test_a_draw_takes_each_of_the_captions_equally_often(features, pairs):
    found = Pairs(features["fp16"], pairs, "train")
    all_texts = found.texts(np.arange(len(found)))
    three = next(n for n, texts in enumerate(all_texts) if len(texts) == 3)
    draw = np.arange(300) / 300
    drawn = found.batch(np.full(300, three), draw).texts
    assert {text: drawn.count(text) for text in drawn} == dict.fromkeys(all_texts[three], 100)
    assert found.batch(np.array([three]), np.nextafter([1.0], 0)).texts == [all_texts[three][2]]
    one = next(n for n, texts in enumerate(all_texts) if len(texts) == 1)
    assert {*found.batch(np.full(300, one), draw).texts} == {all_texts[one][0]}


def test_a_batch_holds_tokens_texts_and_keys_side_by_side(features, pairs):
    found = Pairs(features["fp16"], pairs, "train")
    pictures = np.array([4, 0, 7])
    batch = found.batch(pictures, np.zeros(3))
    assert torch.equal(batch.tokens, found.tokens([4, 0, 7]))
    assert batch.texts == [its[0] for its in found.texts(pictures)]
    assert batch.picture.tolist() == [4, 0, 7]
    assert batch.caption.dtype == batch.picture.dtype == torch.int64
    again = found.batch(np.array([7, 4]), np.zeros(2))
    assert again.caption.tolist() == batch.caption[[2, 0]].tolist()
    assert again.picture.tolist() == [7, 4]


def test_keys_of_captions_are_equal_exactly_where_captions_are(features, pairs, monkeypatch):
    found = Pairs(features["fp16"], pairs, "train")
    texts = ["A red boat", "a red boat", "a red boat ", "a red boats"]
    monkeypatch.setattr(found, "_drawn", lambda *_: texts)
    keys = found.batch(np.arange(4), np.full(4, 0.5)).caption.tolist()
    assert keys[0] == keys[1]  # tokenizers of BERT's kind see no case
    assert len(set(keys)) == 3
    assert min(keys) >= 0


# The next batch in the background


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 9), range(5, 5)])
def test_every_step_is_made_once_in_order(steps):
    made: list[int] = []

    def make(step: int) -> str:
        made.append(step)
        return f"batch {step}"

    assert list(ahead(make, steps)) == [f"batch {step}" for step in steps]
    assert made == list(steps)


def test_the_next_step_is_made_while_this_one_is_used_and_no_more():
    begun, made = threading.Event(), []

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            begun.set()
        return step

    coming = ahead(make, range(10))
    assert next(coming) == 0
    assert begun.wait(10)
    coming.close()
    assert made == [0, 1]


def test_a_fault_in_the_background_comes_with_its_step():
    def make(step: int) -> int:
        if step == 2:
            raise DatasetError("shard 7 is damaged")
        return step

    coming = ahead(make, range(5))
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(DatasetError, match="shard 7 is damaged"):
        next(coming)
