"""What is kept of a frozen encoder: a record that is read without loading any."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EncoderSpec:
    """What a dataset of features must say of the encoder that made it."""

    name: str
    weights: str
    """`pretrained`, `random` or `file`: how to load it again."""
    weights_digest: str
    """SHA-256 over names, types, shapes and values of all weights, in hexadecimal."""
    layer: int
    num_tokens: int
    """P"""
    width: int
    """C"""
    transform: dict[str, Any]
    """Size in pixels, interpolation, crop, mean and standard deviation."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
