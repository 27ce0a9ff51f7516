"""What the shapes of weights tell: the configuration of a Q-Former."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from model.exchange.weight_names import Names
from model.qformer import QFormerConfig
from pipeline.errors import ConfigError


def config_of(
    tensors: Mapping[str, Tensor], names: Names, known: Mapping[str, Any]
) -> QFormerConfig:
    """The configuration of a Q-Former from the shapes of its weights.

    Args:
        tensors: under our names.
        names: theirs, for errors.
        known: fields that shapes do not tell; without them heads are 64 wide, as BERT's, and
            whatever else as by default.

    Raises:
        ConfigError: a weight that tells a field is missing, or the layers with cross-attention are
            not evenly spaced.
    """

    def size(name: str, dimension: int) -> int:
        if name not in tensors:
            raise ConfigError(f"{names.theirs(name)}: missing")
        if tensors[name].ndim <= dimension:
            raise ConfigError(f"{names.theirs(name)}: has shape {tuple(tensors[name].shape)}")
        return int(tensors[name].shape[dimension])

    width = size("qformer.query_tokens", 2)
    shape = {
        "vision_width": size("ln_vision.weight", 0),
        "num_queries": size("qformer.query_tokens", 1),
        "width": width,
        "num_heads": max(1, width // 64),
        "feed_forward_width": size("qformer.layers.0.query_feed_forward.up.weight", 0),
    }
    shape |= _layers(tensors)
    if "vision_proj.weight" in tensors:
        shape["embed_dim"] = size("vision_proj.weight", 0)
        shape["vocab_size"] = size("qformer.embeddings.words.weight", 0)
        shape["max_positions"] = size("qformer.embeddings.positions.weight", 0)
        shape["max_text_tokens"] = min(32, shape["max_positions"])
    return QFormerConfig(**{**shape, **known})


def _layers(names: Iterable[str]) -> dict[str, int]:
    """How many layers there are, and how far apart those with cross-attention."""
    found = [re.match(r"qformer\.layers\.(\d+)\.(look)?", name) for name in names]
    numbers = {int(match[1]) for match in found if match}
    looks = sorted({int(match[1]) for match in found if match and match[2]})
    every = looks[1] - looks[0] if len(looks) > 1 else max(len(numbers), 1)
    if looks != list(range(0, len(numbers), every)):
        raise ConfigError(f"crossattention: in layers {looks}, which are not evenly spaced from 0")
    return {"num_layers": len(numbers), "cross_attention_every": every}
