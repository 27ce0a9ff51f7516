"""Shapes of text models by name, without a weight: for counting what they cost."""

from typing import Any

from transformers import AutoConfig, BertConfig, OPTConfig, T5Config

from model.pretrained.hub import language_folder, text_folder
from pipeline.errors import ConfigError, first_line

_OPT: dict[str, Any] = {"num_hidden_layers": 32, "num_attention_heads": 32}
_KNOWN: dict[str, Any] = {
    "hf:bert-base-uncased": BertConfig(),
    "hf:facebook/opt-2.7b": OPTConfig(
        hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10_240, **_OPT
    ),
    "hf:facebook/opt-6.7b": OPTConfig(
        hidden_size=4096, word_embed_proj_dim=4096, ffn_dim=16_384, **_OPT
    ),
    "hf:google/flan-t5-xl": T5Config(
        d_model=2048, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu"
    ),
}
"""Those of BLIP-2's paper, so that a plan needs no hub; anything else tells its own."""


def bert_shape(name: str) -> BertConfig:
    """The shape of a BERT (`StartConfig.start`).

    Raises:
        ConfigError: it cannot be had, or is none.
    """
    config = _KNOWN.get(name) or _from(text_folder(name), f"start: {name}")
    if config.model_type != "bert":
        raise ConfigError(f"start: {name}: is no BERT but {config.model_type!r}")
    return config


def language_shape(name: str) -> Any:
    """The shape of a language model, as a configuration of transformers.

    Raises:
        ConfigError: it cannot be had.
    """
    config = _KNOWN.get(name) or _from(language_folder(name), f"language_model: {name}")
    return config.text_config if config.model_type == "blip-2" else config


def _from(folder: str, what: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} cannot be had ({first_line(error)})") from error
