"""How image tokens are stored: as fp16, as bf16, or as int8 with scales.

A ViT has a few channels whose values are a hundred times those of the others. So for int8 a channel
is centred and divided by its standard deviation first, both taken from a sample, one set a dataset;
then each token has a scale of its own, by which its largest value is 127 steps.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError, DatasetError

_LARGEST = {
    "fp16": float(np.finfo(np.float16).max),
    "bf16": float(np.array([0x7F7F7FFF], np.uint32).view(np.float32)[0]),  # still rounded down
    "int8": float(np.finfo(np.float16).max),  # it is read as fp16
}
_STEPS = 127
_METADATA = b"viaduct.channels"
"""Of a shard's schema: where the channels of its int8 tokens are told."""


@dataclass(frozen=True, eq=False)
class Channels:
    """What int8 tokens of a dataset share."""

    centre: np.ndarray
    """float32[C]: the mean of each channel."""
    scale: np.ndarray
    """float32[C]: its standard deviation, positive."""

    @staticmethod
    def of(sample: Iterable[np.ndarray], width: int) -> "Channels":
        """Of a sample, some float32[N, P, C] with C = `width`; of none, 0 and 1."""
        count, total, squares = 0, np.zeros(width), np.zeros(width)
        for part in sample:
            values = part.reshape(-1, width).astype(np.float64)
            count += len(values)
            total += values.sum(axis=0)
            squares += np.square(values).sum(axis=0)
        centre = total / max(count, 1)
        scale = np.sqrt(np.maximum(squares / max(count, 1) - np.square(centre), 0))
        # A channel that never changes in the sample may do so elsewhere: it is as wide as the rest.
        usual = float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
        scale = np.where(scale > 1e-6 * usual, scale, usual)
        return Channels(centre.astype(np.float32), scale.astype(np.float32))

    def to_json(self) -> dict[str, str]:
        """The values' bytes, little-endian, in base64."""
        told = {"centre": self.centre, "scale": self.scale}
        return {n: base64.b64encode(v.astype("<f4").tobytes()).decode() for n, v in told.items()}

    @staticmethod
    def from_json(value: Mapping[str, str]) -> "Channels":
        """Raises KeyError or ValueError where `value` is none."""
        centre, scale = (
            np.frombuffer(base64.b64decode(value[name]), "<f4").astype(np.float32)
            for name in ("centre", "scale")
        )
        return Channels(centre, scale)

    @property
    def as_metadata(self) -> dict[bytes, bytes]:
        """For the schema of a shard."""
        return {_METADATA: json.dumps(self.to_json()).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None, name: str) -> "Channels":
        """Out of the schema of a shard; raises DatasetError, with `name`, where they are not."""
        try:
            return Channels.from_json(json.loads((metadata or {})[_METADATA]))
        except (KeyError, ValueError) as error:
            raise DatasetError(f"{name}: int8 tokens without their channels: {error}") from error


def check_range(tokens: np.ndarray, uids: Sequence[bytes], dtype: str) -> None:
    """Check that a type holds these tokens.

    Args:
        tokens: float32[N, P, C]
        uids: of the N pictures.
        dtype: a key of `schemas.TOKEN_DTYPES`.

    Raises:
        ConfigError: it does not, or a value is not finite; the picture is named.
    """
    if not tokens.size:
        return
    axes = (1, 2)
    largest = np.maximum(tokens.max(axis=axes), -tokens.min(axis=axes))
    for number in np.flatnonzero(~(largest <= _LARGEST[dtype])).tolist():  # NaN fails too
        uid, value = uids[number].hex(), largest[number]
        if not np.isfinite(value):
            raise ConfigError(f"picture {uid}: the encoder gives {value}: its weights are no good")
        advice = "" if dtype == "bf16" else "; use --dtype bf16"
        raise ConfigError(f"picture {uid}: {value:.4g} does not fit {dtype}{advice}")


def encode(
    tokens: np.ndarray, dtype: str, channels: Channels | None = None
) -> dict[str, np.ndarray]:
    """Image tokens as they are stored, by column.

    Args:
        tokens: float32[N, P, C], within the range of the type.
        dtype: a key of `schemas.TOKEN_DTYPES`.
        channels: of the dataset, for int8.

    Returns:
        `tokens`: float16, uint16 (the bits of bfloat16) or int8 [N, P, C]; with int8 also
        `token_scales`: float32[N, P].
    """
    if dtype == "fp16":
        return {"tokens": tokens.astype(np.float16)}
    if dtype == "bf16":
        return {"tokens": _bf16_bits(tokens)}
    if channels is None:
        raise ValueError("int8 needs channels")
    standard = (tokens - channels.centre) / channels.scale
    scales = np.abs(standard).max(axis=2) / np.float32(_STEPS)
    steps = standard / np.where(scales > 0, scales, 1)[..., None]
    return {"tokens": np.rint(steps).astype(np.int8), "token_scales": scales.astype(np.float32)}


def decode(steps: np.ndarray, scales: np.ndarray, channels: Channels, out: np.ndarray) -> None:
    """Write what int8 tokens stand for.

    Args:
        steps: int8[..., P, C]
        scales: float32[..., P]
        channels: of the dataset.
        out: float16[..., P, C]
    """
    values = np.multiply(steps, channels.scale, dtype=np.float32)
    values *= scales[..., None]
    values += channels.centre
    largest = np.float32(_LARGEST["fp16"])  # a rounded one may lie just beyond
    out[...] = np.clip(values, -largest, largest, out=values)


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16 as uint16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
