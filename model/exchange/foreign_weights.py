"""Weights of another format under our names, and the models that they make."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.exchange.weight_names import Names
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.tokenizer import CaptionTokenizer
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
