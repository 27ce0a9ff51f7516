"""BLIP-2 folders of transformers: what is in them under our names, and ours under theirs.

Stage 1 is `Blip2ForImageTextRetrieval`, stage 2 `Blip2ForConditionalGeneration` (or `Blip2Model`,
which has the same weights).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoConfig,
    Blip2Config,
)

from model.exchange.foreign_weights import ForeignWeights
from model.exchange.weight_names import TRANSFORMERS, renamed, under_their_names
from model.exchange.weight_shapes import config_of
from model.pretrained.vision_tower import is_frozen
from model.pretrained.weight_files import read_tensors
from model.tokenizer import CaptionTokenizer
from pipeline.errors import ConfigError, first_line

STAGES = {
    "Blip2ForImageTextRetrieval": 1,
    "Blip2ForConditionalGeneration": 2,
    "Blip2Model": 2,
}
IMAGE = "<image>"
"""Stands for a query output among the tokens."""

CAPTION_HEAD = "qformer.head."
LACKING = {"temperature": "the temperature", CAPTION_HEAD: "the caption head"}
"""Of stage 1, by our names."""

_POSITIONS = (r"embeddings\.position_ids", "counts from 0")
_TEXT = (
    r"qformer\.encoder\.layer\.\d+\."
    r"(intermediate\.dense|output\.(dense|LayerNorm))\.(weight|bias)",
    "of text; stage 2 reads none",
)


def read_config(folder: Path) -> Blip2Config:
    """The configuration of a BLIP-2 folder.

    Raises:
        ConfigError: it is of another model.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: is no folder of transformers ({first_line(error)})"
        ) from error
    made = (config.architectures or ["nothing"])[0]
    if config.model_type != "blip-2" or made not in STAGES:
        raise ConfigError(f"{folder}: is a {made}; one of {', '.join(STAGES)} is needed")
    if config.qformer_config.hidden_act != "gelu":
        raise ConfigError(
            f"{folder}: qformer_config.hidden_act is {config.qformer_config.hidden_act!r}, not gelu"
        )
    return config


def read_hugging_face(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What trains of a BLIP-2 folder by the names of transformers, and the names of the rest."""
    return read_tensors(folder, lambda name: not is_kept_frozen(name))


def is_kept_frozen(name: str) -> bool:
    """Whether a weight is of the vision tower or of the language model."""
    return is_frozen(name) or name.startswith("language_model.")


def from_hugging_face(
    theirs: Mapping[str, Tensor], config: Blip2Config, beside: dict[str, Tensor]
) -> ForeignWeights:
    """The names of transformers to ours, stage 1 or 2.

    Args:
        theirs: from `read_hugging_face`.
        config: from `read_config`.
        beside: what was kept beside of a checkpoint that was exported, under our names.

    Raises:
        ConfigError: a weight is unexpected or missing.
    """
    stage = STAGES[(config.architectures or [""])[0]]
    ours, left_out = renamed(theirs, TRANSFORMERS, [_POSITIONS, *([_TEXT] if stage == 2 else [])])
    its: Any = config.qformer_config
    vision: Any = config.vision_config
    known = {
        "num_layers": its.num_hidden_layers,
        "num_heads": its.num_attention_heads,
        "cross_attention_every": its.cross_attention_frequency,
        "dropout": its.hidden_dropout_prob,
        "layer_norm_eps": its.layer_norm_eps,
        "vision_norm_eps": vision.layer_norm_eps,
    }
    lacking = tuple(
        start
        for start in (LACKING if stage == 1 else ())
        if not any(name.startswith(start) for name in beside)
    )
    return ForeignWeights(
        stage, config_of(ours, TRANSFORMERS, known), ours | beside, TRANSFORMERS, lacking, left_out
    )


def to_hugging_face(ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our names to those of transformers, and under our names what they have no place for.

    Args:
        ours: the state dict of a `Stage1` or `Stage2`.
    """
    return under_their_names(ours, TRANSFORMERS)


def folder_tokenizer(folder: Path) -> CaptionTokenizer:
    """The Q-Former's tokenizer in a folder of stage 1, without the token for query outputs.

    Raises:
        ConfigError: there is none, or it is no BERT's.
    """
    return CaptionTokenizer.of_model(f"hf:{folder}", without=(IMAGE,))
