"""Names of the weights: ours, LAVIS's and those of transformers, one to one.

A name of theirs that stands for nothing of ours is either one of those that are left out on
purpose, with the reason, or an error; so no tensor is passed over in silence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError

LeftOut = Sequence[tuple[str, str]]
"""Patterns of whole names, each with why they are left out."""


@dataclass(frozen=True)
class Names:
    """How a format names the weights of a Q-Former, its heads and its projection."""

    roots: Mapping[str, str]
    """Ours to theirs, outside the layers; without `.weight` and `.bias`."""
    layers: str
    """What stands before the number of a layer."""
    attention: str
    """What holds query, key and value within an attention."""

    def theirs(self, ours: str) -> str | None:
        """Their name of one of our weights; None where they have no place for it."""
        parts = _layer_parts(self.attention)
        return _translated(ours, self.roots, "qformer.layers", self.layers, parts)

    def ours(self, theirs: str) -> str | None:
        """Our name of one of their weights; None where we have no place for it."""
        parts = _inverse(_layer_parts(self.attention))
        return _translated(theirs, _inverse(self.roots), self.layers, "qformer.layers", parts)


_HEADS = {name: name for name in ("vision_proj", "text_proj", "itm_head", "ln_vision")}


def lavis_names(projection: str = "opt_proj") -> Names:
    """LAVIS's (`Blip2Qformer`, `Blip2OPT`, `Blip2T5`), inside {"model": ...}.

    Args:
        projection: `opt_proj`, or `t5_proj` where the language model is encoder-decoder.
    """
    bert, predictions = "Qformer.bert", "Qformer.cls.predictions"
    roots = _HEADS | {
        "temperature": "temp",
        "qformer.query_tokens": "query_tokens",
        "qformer.embeddings.words": f"{bert}.embeddings.word_embeddings",
        "qformer.embeddings.positions": f"{bert}.embeddings.position_embeddings",
        "qformer.embeddings.norm": f"{bert}.embeddings.LayerNorm",
        "qformer.head.dense": f"{predictions}.transform.dense",
        "qformer.head.norm": f"{predictions}.transform.LayerNorm",
        "qformer.head.bias": f"{predictions}.bias",
        "projection": projection,
    }
    return Names(roots, f"{bert}.encoder.layer", "self")


TRANSFORMERS = Names(
    {
        "ln_vision": "vision_model.post_layernorm",
        "vision_proj": "vision_projection",
        "text_proj": "text_projection",
        "itm_head": "itm_head",
        "qformer.query_tokens": "query_tokens",
        "qformer.embeddings.words": "embeddings.word_embeddings",
        "qformer.embeddings.positions": "embeddings.position_embeddings",
        "qformer.embeddings.norm": "qformer.layernorm",
        "projection": "language_projection",
    },
    "qformer.encoder.layer",
    "attention",
)
"""Those of `Blip2ForImageTextRetrieval`, `Blip2ForConditionalGeneration` and `Blip2Model`, which
have no place for the temperature and the caption head."""


def renamed(
    theirs: Mapping[str, Tensor], names: Names, left_out: LeftOut
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Tensors under our names.

    Args:
        theirs: of their format.
        names: its names.
        left_out: whose names are passed over; tried first.

    Returns:
        The tensors in float32, and for each reason the names that were left out.

    Raises:
        ConfigError: a name that nothing stands for.
    """
    ours: dict[str, Tensor] = {}
    passed: dict[str, list[str]] = {}
    for name, value in theirs.items():
        why = next((why for pattern, why in left_out if re.fullmatch(pattern, name)), None)
        mine = names.ours(name)
        if why is not None:
            passed.setdefault(why, []).append(name)
        elif mine is None:
            raise ConfigError(f"{name}: unexpected; it is no weight of BLIP-2 that is known here")
        else:
            ours[mine] = value.to(torch.float32)
    return ours, passed


def under_their_names(
    ours: Mapping[str, Tensor], names: Names
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under their names, and under our names those that they have no place for."""
    theirs, rest = {}, {}
    for name, value in ours.items():
        their = names.theirs(name)
        if their is None:
            rest[name] = value
        else:
            theirs[their] = value
    return theirs, rest


def _layer_parts(attention: str) -> dict[str, str]:
    """Ours to theirs within a layer."""
    parts: dict[str, str] = {}
    for mine, its in (("attention", "attention"), ("look", "crossattention")):
        parts |= {f"{mine}.{p}": f"{its}.{attention}.{p}" for p in ("query", "key", "value")}
        parts |= {
            f"{mine}.output": f"{its}.output.dense",
            f"{mine}.norm": f"{its}.output.LayerNorm",
        }
    for mine, its in (("text_feed_forward", ""), ("query_feed_forward", "_query")):
        parts |= {
            f"{mine}.up": f"intermediate{its}.dense",
            f"{mine}.down": f"output{its}.dense",
            f"{mine}.norm": f"output{its}.LayerNorm",
        }
    return parts


def _translated(
    name: str, roots: Mapping[str, str], source: str, target: str, parts: Mapping[str, str]
) -> str | None:
    if name in roots:
        return roots[name]
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in roots:
        return f"{roots[stem]}.{kind}"
    found = re.fullmatch(rf"{re.escape(source)}\.(\d+)\.(.+)", stem)
    if found is None or found[2] not in parts:
        return None
    return f"{target}.{found[1]}.{parts[found[2]]}.{kind}"


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}
