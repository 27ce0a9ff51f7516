"""A BERT's weights as the start of a Q-Former."""

from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from model.pretrained.hub import text_folder
from model.pretrained.load_report import no_report
from model.stage1 import Stage1
from pipeline.errors import ConfigError, first_line

Bert = tuple[Any, bool]
"""A BertForMaskedLM, and whether its checkpoint has a language-model head."""

_LAYER = [
    *((f"attention.{part}", f"attention.self.{part}") for part in ("query", "key", "value")),
    ("attention.output", "attention.output.dense"),
    ("attention.norm", "attention.output.LayerNorm"),
    *(
        pair
        for net in ("text_feed_forward", "query_feed_forward")
        for pair in (
            (f"{net}.up", "intermediate.dense"),
            (f"{net}.down", "output.dense"),
            (f"{net}.norm", "output.LayerNorm"),
        )
    ),
]
"""Our names within a layer, and BERT's."""


def load_bert(name: str) -> Bert:
    """A BERT by its name, in eval mode, in float32 on the CPU.

    Args:
        name: see `text_folder`.

    Raises:
        ConfigError: it cannot be had, is no BERT, or lacks a weight of one.
    """
    folder = text_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "bert":
            raise ConfigError(f"start: {name} is a {config.model_type}; a BERT is needed")
        with no_report():
            model, told = AutoModelForMaskedLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"start: {name} cannot be had ({first_line(error)})") from error
    missing = sorted(told["missing_keys"])
    for key in missing:
        if not key.startswith("cls."):
            raise ConfigError(f"start: {name}: {key}: missing")
    return model.eval(), not any(key.startswith("cls.predictions.transform") for key in missing)


@torch.no_grad()
def copy_bert(stage1: Stage1, bert: Bert) -> None:
    """Copy BERT's weights; the queries' feed-forward nets start as copies of the text's.

    BLIP-2 has no token types. That of a sentence, which BERT adds everywhere, goes into the
    positions, so that text is read as by BERT.
    """
    model, has_head = bert
    theirs: dict[str, Tensor] = model.state_dict()
    ours = stage1.qformer.state_dict()

    def copy(name: str, value: Tensor) -> None:
        ours[name][: len(value)].copy_(value)  # [DEC] has no row in theirs

    base = "bert.embeddings."
    known = stage1.tokenizer.dec  # some vocabularies are padded beyond the words there are
    copy("embeddings.words.weight", theirs[base + "word_embeddings.weight"][:known])
    copy(
        "embeddings.positions.weight",
        theirs[base + "position_embeddings.weight"]
        + theirs[base + "token_type_embeddings.weight"][0],
    )
    for kind in ("weight", "bias"):
        copy(f"embeddings.norm.{kind}", theirs[f"{base}LayerNorm.{kind}"])
        for number in range(len(stage1.qformer.layers)):
            for mine, its in _LAYER:
                value = theirs[f"bert.encoder.layer.{number}.{its}.{kind}"]
                copy(f"layers.{number}.{mine}.{kind}", value)
        if has_head:
            transform = "cls.predictions.transform."
            copy(f"head.dense.{kind}", theirs[f"{transform}dense.{kind}"])
            copy(f"head.norm.{kind}", theirs[f"{transform}LayerNorm.{kind}"])
    if has_head:
        copy("head.bias", theirs["cls.predictions.bias"][:known])
