"""Language models by name, with each of their weights accounted for."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
)

from model.pretrained.hub import language_folder
from model.pretrained.language import LanguageModel
from model.pretrained.load_report import no_report
from pipeline.errors import ConfigError, first_line


def load_language_model(name: str) -> LanguageModel:
    """Load a language model on the CPU, in float32.

    Args:
        name: `hf:NAME_OR_FOLDER` (of a BLIP-2 its language model is taken), or `offline:smollm2`
            (SmolLM2-135M-Instruct, comes with pip).

    Raises:
        ConfigError: there is none of that name, it cannot be had, a weight is missing, unexpected
            or of another shape, its tokenizer is of another model or has no end token, or it is
            encoder-decoder and says not what a decoder starts with.
    """
    folder = language_folder(name)
    # Shapes are not ignored, but told by `_check_weights`, which names the weight.
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        whole = AutoConfig.from_pretrained(folder)
        is_blip2 = whole.model_type == "blip-2"  # whose language model lies in the same folder
        config = whole.text_config if is_blip2 else whole
        kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        kind = Blip2ForConditionalGeneration if is_blip2 else kind
        with no_report():
            model, loaded = kind.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"language_model: {name} cannot be had ({first_line(error)})") from error
    _check_weights(name, loaded, "language_model." if is_blip2 else "")
    if len(tokenizer) < config.vocab_size / 2:  # transformers makes an empty one if there is none
        raise ConfigError(
            f"language_model: {name}: its tokenizer has {len(tokenizer)} words, its model "
            f"{config.vocab_size}"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"language_model: {name}: its tokenizer has no end token")
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise ConfigError(f"language_model: {name}: its config has no decoder_start_token_id")
    return LanguageModel(name, model.language_model if is_blip2 else model, tokenizer)


def _check_weights(name: str, loaded: Mapping[str, Any], prefix: str) -> None:
    """Raise for the first weight that transformers drew at random or passed over.

    Args:
        name: of the language model.
        loaded: the loading info of transformers, without what is tied or of no use by its rules.
        prefix: of the language model's weights; those of the rest of a BLIP-2 are read elsewhere.
    """
    for what in ("missing", "unexpected"):
        for key in sorted(loaded[f"{what}_keys"]):
            if key.startswith(prefix):
                raise ConfigError(f"language_model: {name}: {key}: {what}")
    for key, found, needed in sorted(loaded["mismatched_keys"]):
        if key.startswith(prefix):
            raise ConfigError(
                f"language_model: {name}: {key}: has shape {tuple(found)}, not {tuple(needed)}"
            )
