"""Image tokens keep their values, their picture and their place, in fp16 and in bf16."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.dataset import decode_row
from pipeline.errors import ConfigError, DatasetError
from pipeline.features import batches, token_columns
from pipeline.schemas import features_schema

BF16_MAX = 3.3895313892515355e38


def uids(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(count)]


def column(tokens: np.ndarray, dtype: str, present: list[bool] | None = None) -> pa.Array:
    present = [True] * len(tokens) if present is None else present
    return token_columns(tokens, present, uids(len(present)), dtype)["tokens"]


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 50, shape).astype(np.float32)


def bf16_of_torch(values: np.ndarray) -> np.ndarray:
    """uint16: the bits that torch stores."""
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def test_bf16_bits_are_those_of_torch():
    dice = np.random.default_rng(1)
    bits = dice.integers(0, 2**32, 200_000, dtype=np.uint32)
    halfway = (bits & 0xFFFF0000) | 0x8000  # ties, which go to the even neighbour
    edge = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x80000000, 0x80000001, 0x7F7F0000], np.uint32)
    values = np.concatenate([bits, halfway, halfway + 1, halfway - 1, edge]).view(np.float32)
    values = values[np.abs(values) <= BF16_MAX]  # NaN goes too
    tokens = values[: len(values) // 8 * 8].reshape(-1, 2, 4)
    stored = column(tokens, "bf16").to_numpy_ndarray()
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, bf16_of_torch(tokens))


def test_fp16_is_that_of_torch():
    tokens = random_tokens(40, 3, 5)
    tokens[0, 0] = [65504, -65504, 6e-8, 1e-9, -0.0]
    stored = column(tokens, "fp16").to_numpy_ndarray()
    expected = torch.from_numpy(tokens).to(torch.float16).numpy()
    np.testing.assert_array_equal(stored.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(3, 2, 4), (1, 1, 1), (2, 1, 4), (2, 4, 1), (1, 3, 2)])
def test_a_column_has_the_type_of_its_schema_and_comes_back(dtype, shape):
    tokens = random_tokens(*shape)
    stored = column(tokens, dtype)
    schema = features_schema(shape[1], shape[2], dtype)
    table = pa.table({"uid": pa.array(uids(shape[0]), pa.binary(16)), "tokens": stored})
    assert table.schema.equals(schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    again = pa.ipc.open_file(sink.getvalue()).read_all()
    assert again.schema.equals(schema)
    expected = tokens.astype(np.float16) if dtype == "fp16" else bf16_of_torch(tokens)
    found = again.column("tokens").combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_tokens_may_lie_in_memory_in_any_order(order):
    tokens = np.asarray(random_tokens(4, 3, 2), order=order)
    for view in (tokens, tokens[::2], tokens[::-1], tokens[:, ::-1]):
        np.testing.assert_array_equal(
            column(view, "fp16").to_numpy_ndarray(), view.astype(np.float16)
        )


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "present", [[True, False, True], [False, True, True], [True, True, False], [False] * 3]
)
def test_a_row_without_a_picture_is_null_and_the_others_keep_their_places(dtype, present):
    tokens = random_tokens(sum(present), 2, 3)
    stored = column(tokens, dtype, present)
    assert stored.type == features_schema(2, 3, dtype).field("tokens").type
    assert stored.is_valid().to_pylist() == present
    rest = iter(column(tokens, dtype).to_pylist() if any(present) else [])
    assert stored.to_pylist() == [next(rest) if here else None for here in present]


@pytest.mark.parametrize("value", [65505.0, -70000.0, 1e30])
def test_a_value_that_fp16_cannot_hold_names_its_picture_and_suggests_bf16(value):
    tokens = random_tokens(3, 2, 2)
    tokens[1, 1, 0] = value
    present = [True, False, True, True]  # the second that is present is row 2
    with pytest.raises(ConfigError, match=rf"picture {2:032x}: .* fp16; use --dtype bf16"):
        column(tokens, "fp16", present)
    assert column(tokens, "bf16", present).null_count == 1


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_blames_the_encoder(dtype, value):
    tokens = random_tokens(2, 2, 2)
    tokens[1, 0, 0] = value
    with pytest.raises(ConfigError, match=rf"picture {1:032x}: the encoder gives"):
        column(tokens, dtype)


def test_a_value_that_bf16_would_round_to_infinity_is_refused():
    assert column(np.full((1, 1, 1), BF16_MAX, np.float32), "bf16").null_count == 0
    with pytest.raises(ConfigError, match=f"picture {0:032x}"):
        column(np.full((1, 1, 1), 3.4e38, np.float32), "bf16")


@pytest.fixture(scope="module")
def jpegs(encode, noise):
    return [encode(noise(seed), "JPEG") for seed in range(7)]


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def mean(picture: Image.Image, uid: bytes = b"") -> float:
    assert picture.mode == "RGB"
    return float(np.asarray(picture).mean())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_batches_hold_every_row_once_in_order(jpegs, make_shard, threads, count, batch_size):
    shard = make_shard(jpegs[:count], down={2} & set(range(count)))
    expected = [None if row == 2 else mean(decode_row(shard, row)) for row in range(count)]
    told = []
    got = list(batches(shard, batch_size, lambda *its: told.append(its[1]) or mean(*its), threads))
    assert sorted(told) == [uid for row, uid in enumerate(uids(count)) if row != 2]
    assert [row for rows, _ in got for row in rows] == list(range(count))
    assert [value for _, values in got for value in values] == expected
    assert [len(rows) for rows, _ in got] == [
        min(batch_size, count - start) for start in range(0, count, batch_size)
    ]
    assert all(len(rows) == len(values) for rows, values in got)


def test_a_picture_taken_down_is_not_decoded(jpegs, make_shard, threads):
    shard = make_shard([jpegs[0], b"no picture", None], down=[1, 2])
    ((_, values),) = batches(shard, 4, mean, threads)
    assert values[1:] == [None, None]
    assert values[0] is not None


def test_the_next_batches_are_made_while_one_is_used(jpegs, make_shard, threads):
    begun, lock, made = threading.Event(), threading.Lock(), []

    def prepare(picture: Image.Image, uid: bytes) -> int:
        with lock:
            made.append(uid)
            if len(made) == 6:
                begun.set()
        return 0

    coming = batches(make_shard(jpegs), 2, prepare, threads)  # two batches before any is asked for
    next(coming)
    assert begun.wait(5)
    assert len(made) == 6  # and no more than the next two


def test_a_picture_that_cannot_be_decoded_is_named(jpegs, make_shard, threads):
    shard = make_shard([jpegs[0], jpegs[1], jpegs[2][:100]])
    coming = batches(shard, 2, mean, threads)
    assert len(next(coming)[1]) == 2
    with pytest.raises(DatasetError, match=rf"00000\.arrow: row 2: picture {2:032x}"):
        next(coming)
