"""Codes of image tokens: what is lost of each channel, measured in its own standard deviation."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, DatasetError
from pipeline.features import token_columns
from pipeline.schemas import features_schema
from pipeline.token_codes import Channels, check_range, decode, encode

N, P, C = 40, 17, 192
UIDS = [row.to_bytes(16, "big") for row in range(N)]


def vit_like(seed: int = 0) -> np.ndarray:
    """float32[N, P, C] with what makes a ViT hard to store.

    Most channels are about 1 wide; three are a hundred times that, one far off zero, one tiny, and
    in two of them a few tokens are as large as registers are.
    """
    encoder, dice = np.random.default_rng(99), np.random.default_rng(seed)
    tokens = dice.normal(0, 1, (N, P, C)) * encoder.uniform(0.5, 2, C) + encoder.normal(0, 1, C)
    tokens[..., 3:6] *= 100
    tokens[..., 7] += 300
    tokens[..., 8] *= 1e-3
    tokens[:, 2, 10:12] += 150
    tokens[:, 0] *= 3  # [CLS] is another kind of token
    return tokens.astype(np.float32)


def decoded(tokens: np.ndarray, dtype: str, channels: Channels | None) -> np.ndarray:
    stored = encode(tokens, dtype, channels)
    if dtype == "fp16":
        return stored["tokens"].astype(np.float32)
    if dtype == "bf16":
        return (stored["tokens"].astype(np.uint32) << 16).view(np.float32)
    out = np.empty(tokens.shape, np.float16)
    decode(stored["tokens"], stored["token_scales"], channels, out)
    return out.astype(np.float32)


@pytest.mark.parametrize(("dtype", "bound"), [("fp16", 1e-3), ("bf16", 8e-3), ("int8", 1e-2)])
def test_each_channel_keeps_its_values_but_for_a_part_of_its_own_spread(dtype, bound):
    """Root mean square; channel 7 lies 300 away from zero and is judged apart."""
    tokens = vit_like()
    channels = Channels.of(np.split(vit_like(1), 4), C)  # other pictures
    error = decoded(tokens, dtype, channels) - tokens
    spread = tokens.std(axis=(0, 1))
    lost = np.sqrt(np.square(error).mean(axis=(0, 1))) / spread
    rest = np.arange(C) != 7
    assert lost[rest].max() < bound
    assert lost[rest].max() > bound / 5
    # Neither float is centred, so the further one is from zero the coarser it is.
    assert lost[7] < {"fp16": 2e-3, "bf16": 1e-2, "int8": 1e-2}[dtype]


def test_without_scales_per_channel_int8_would_lose_the_small_ones():
    tokens = vit_like()
    one = Channels(np.zeros(C, np.float32), np.ones(C, np.float32))
    error = decoded(tokens, "int8", one) - tokens
    assert np.sqrt(np.square(error).mean()) / tokens.std() < 0.03  # this figure hides it
    assert np.median(np.abs(error).mean(axis=(0, 1)) / tokens.std(axis=(0, 1))) > 0.3


def test_int8_is_off_by_half_a_step_of_its_token_and_channel_at_most():
    tokens, channels = vit_like(), Channels.of([vit_like()], C)
    stored = encode(tokens, "int8", channels)
    assert (stored["tokens"].dtype, stored["token_scales"].dtype) == (np.int8, np.float32)
    assert np.abs(stored["tokens"]).max(axis=2).min() == 127  # each token uses all steps
    step = stored["token_scales"][..., None] * channels.scale
    error = np.abs(decoded(tokens, "int8", channels) - tokens)
    assert (error <= 0.5 * step + 1e-3 * np.abs(tokens)).all()  # and it is read as fp16


def test_channels_are_those_of_the_whole_sample():
    tokens = vit_like()
    channels = Channels.of(np.array_split(tokens, 7), C)
    np.testing.assert_allclose(channels.centre, tokens.mean(axis=(0, 1)), atol=1e-3)
    np.testing.assert_allclose(channels.scale, tokens.std(axis=(0, 1), dtype=np.float64), rtol=1e-4)


def test_a_channel_that_never_changed_in_the_sample_may_change_later():
    sample = vit_like()
    sample[..., 4] = 7
    channels = Channels.of([sample], C)
    assert (channels.scale > 0).all()
    error = decoded(vit_like(), "int8", channels) - vit_like()
    assert np.isfinite(error).all()


def test_of_no_sample_channels_are_plain_and_zeros_stay_zeros():
    channels = Channels.of([], C)
    assert (channels.centre.max(), channels.scale.min(), channels.scale.max()) == (0, 1, 1)
    assert not decoded(np.zeros((2, P, C), np.float32), "int8", channels).any()


def test_channels_travel_in_the_schema_to_the_bit():
    channels = Channels.of([vit_like()], C)
    schema = features_schema(P, C, "int8", channels.as_metadata)
    columns = token_columns(vit_like(), [True] * N, UIDS, "int8", channels)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table({"uid": UIDS, **columns}, schema=schema))
    read = pa.ipc.open_file(sink.getvalue()).schema
    assert read.equals(schema)
    again = Channels.from_metadata(read.metadata, "a")
    np.testing.assert_array_equal(again.centre, channels.centre)
    np.testing.assert_array_equal(again.scale, channels.scale)
    with pytest.raises(DatasetError, match="a: int8 tokens without their channels"):
        Channels.from_metadata(None, "a")


def test_values_that_fp16_cannot_hold_are_refused_for_int8_too():
    tokens = vit_like()
    tokens[1, 2, 3] = 65505
    with pytest.raises(ConfigError, match=rf"picture {1:032x}: 6.55e\+04 does not fit int8"):
        check_range(tokens, UIDS, "int8")
    tokens[1, 2, 3] = 65504
    check_range(tokens, UIDS, "int8")
    assert np.isfinite(decoded(tokens, "int8", Channels.of([vit_like()], C))).all()
