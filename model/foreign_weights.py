"""Weights of another format under our names: what they tell of their shape, and models of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.tokenizer import CaptionTokenizer
from model.weight_names import Names
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ForeignWeights:
    """What a checkpoint of another format holds for us."""

    stage: int
    config: QFormerConfig
    tensors: dict[str, Tensor]
    """Under our names, in float32."""
    names: Names
    """Theirs, for errors."""
    lacking: tuple[str, ...]
    """Beginnings of our names that the format has no place for, and that were not kept beside."""
    left_out: dict[str, list[str]]
    """Reason to names of theirs that were not used."""

    @property
    def told(self) -> list[str]:
        """A line for each reason for which tensors were left out."""
        lines = []
        for why, names in self.left_out.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"left out: {names[0]}{more}: {why}")
        return lines

    def stage1(self, tokenizer: CaptionTokenizer) -> Stage1:
        """The model of stage 1; what the format lacks starts as in a training from scratch.

        Raises:
            ConfigError: a weight is missing, unexpected or of another shape, or the tokenizer is
                of another vocabulary.
        """
        if len(tokenizer) != self.config.vocab_size:
            raise ConfigError(
                f"tokenizer: has {len(tokenizer)} words with [DEC], but "
                f"{self.names.theirs('qformer.embeddings.words.weight')} has "
                f"{self.config.vocab_size} rows"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            stage1 = Stage1(self.config, tokenizer)
        self._fill(stage1)
        return stage1.eval()

    def stage2(self) -> Stage2:
        """The model of stage 2.

        Raises:
            ConfigError: a weight is missing, unexpected or of another shape.
        """
        if "projection.weight" not in self.tensors:
            raise ConfigError(f"{self.names.theirs('projection.weight')}: missing")
        stage2 = Stage2(self.config, self.tensors["projection.weight"].shape[0])
        self._fill(stage2)
        return stage2.eval()

    def _fill(self, module: nn.Module) -> None:
        own = module.state_dict()
        for name in own:
            if name not in self.tensors and not name.startswith(self.lacking):
                raise ConfigError(f"{self.names.theirs(name) or name}: missing")
        for name, value in self.tensors.items():
            theirs = self.names.theirs(name) or name
            if name not in own:
                raise ConfigError(f"{theirs}: unexpected in a model of stage {self.stage}")
            if own[name].shape != value.shape:
                raise ConfigError(
                    f"{theirs}: has shape {tuple(value.shape)}, not {tuple(own[name].shape)}"
                )
        module.load_state_dict(self.tensors, strict=False)


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
