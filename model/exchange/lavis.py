"""LAVIS's checkpoints: a .pth with {"model": names to tensors}; all else its configuration has."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.exchange.foreign_weights import ForeignWeights
from model.exchange.weight_names import lavis_names, renamed, under_their_names
from model.exchange.weight_shapes import config_of
from pipeline.errors import ConfigError, first_line

ENCODER = "timm:eva_giant_patch14_clip_224.laion400m"
"""What LAVIS calls eva_clip_g; the first 39 of its 40 blocks."""

FILE = "model.pth"
"""Of an exported checkpoint."""

NORM_EPS = 1e-5
"""Of its `ln_vision`."""

VISION = "the vision encoder"
"""Why its tensors are none of the Q-Former's."""

TOWER = "visual_encoder."
"""What stands before the names of its vision encoder."""

_POSITIONS = "Qformer.bert.embeddings.position_ids"
_DECODER = "Qformer.cls.predictions.decoder"
_TIED = {
    f"{_DECODER}.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    f"{_DECODER}.bias": "Qformer.cls.predictions.bias",
}

_KIND = r"\.(weight|bias)"
_ALWAYS = [
    (re.escape(_POSITIONS), "counts from 0"),
    (re.escape(_DECODER) + _KIND, "tied to the word embeddings and the bias"),
    (re.escape(TOWER) + ".+", VISION),
    (r"(opt|t5)_model\..+", "the frozen language model"),
]
_STAGE_2 = [
    (pattern, "of text; stage 2 reads none")
    for pattern in (
        r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight",
        r"Qformer\.bert\.encoder\.layer\.\d+\."
        rf"(intermediate\.dense|output\.(dense|LayerNorm)){_KIND}",
        r"Qformer\.cls\.predictions\.bias",
        rf"Qformer\.cls\.predictions\.transform\.(dense|LayerNorm){_KIND}",
    )
]


def read_lavis(file: Path) -> dict[str, Tensor]:
    """The weights of a LAVIS checkpoint, by LAVIS's names; nothing is unpickled but tensors.

    Raises:
        ConfigError: it is none.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{file}: cannot be read ({first_line(error)})") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(v, Tensor) for v in model.values()):
        raise ConfigError(f"{file}: holds no tensors under 'model', as LAVIS's checkpoints do")
    return model


def from_lavis(theirs: Mapping[str, Tensor], known: Mapping[str, Any]) -> ForeignWeights:
    """LAVIS's names to ours, stage 1 or 2.

    Args:
        theirs: from `read_lavis`.
        known: fields of `QFormerConfig` that shapes do not tell.

    Raises:
        ConfigError: a weight is unexpected or missing, or a tied one is not.
    """
    projections = [name for name in ("opt_proj", "t5_proj") if f"{name}.weight" in theirs]
    stage = 2 if projections else 1
    names = lavis_names(*projections[:1])
    for copy, original in _TIED.items():
        if copy in theirs and not torch.equal(theirs[copy], theirs.get(original, theirs[copy])):
            raise ConfigError(f"{copy}: differs from {original}, to which it is tied")
    ours, left_out = renamed(theirs, names, [*_ALWAYS, *(_STAGE_2 if stage == 2 else [])])
    return ForeignWeights(stage, config_of(ours, names, known), ours, names, (), left_out)


def to_lavis(
    ours: Mapping[str, Tensor], *, max_positions: int, encoder_decoder: bool = False
) -> dict[str, Tensor]:
    """Our names to LAVIS's, stage 1 or 2, with what LAVIS stores twice.

    Args:
        ours: the state dict of a `Stage1` or `Stage2`.
        max_positions: of its Q-Former.
        encoder_decoder: whether its language model is, as T5.
    """
    names = lavis_names("t5_proj" if encoder_decoder else "opt_proj")
    theirs, rest = under_their_names(ours, names)
    if rest:
        raise ValueError(f"LAVIS has no place for {sorted(rest)}")
    theirs[_POSITIONS] = torch.arange(max_positions)[None]
    return theirs | {copy: theirs[name] for copy, name in _TIED.items() if name in theirs}
