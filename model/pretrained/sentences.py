"""Embeddings of sentences by a frozen text model."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from model.pretrained.hub import text_folder
from model.pretrained.load_report import no_report
from pipeline.errors import ConfigError, first_line


class FrozenText:
    """Sentence embeddings: the mean of a frozen text model's outputs, L2-normalised.

    Args:
        name: `offline:minilm`, or `hf:NAME_OR_FOLDER` of any encoder that AutoModel loads.
        device: to compute on.

    Raises:
        ConfigError: the model cannot be had, or lacks a weight.
    """

    _model: Any

    def __init__(self, name: str, device: str = "cpu") -> None:
        folder = text_folder(name)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            with no_report():
                self._model, told = AutoModel.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{name}: cannot be had ({first_line(error)})") from error
        for key in sorted(told["missing_keys"]):
            if not key.startswith("pooler."):  # which nothing here reads
                raise ConfigError(f"{name}: {key}: missing")
        if self._tokenizer.pad_token_id is None or self._model.config.is_encoder_decoder:
            raise ConfigError(f"{name}: is no text encoder like BERT")
        words, known = len(self._tokenizer), self._model.config.vocab_size
        if words < known / 2:  # transformers makes an empty one where there is none
            raise ConfigError(f"{name}: its tokenizer has {words} words, its model {known}")
        self._model.eval().requires_grad_(False).to(device)
        self._device = device
        longest = getattr(self._model.config, "max_position_embeddings", 512)
        self._max_tokens = min(self._tokenizer.model_max_length, longest)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "M E"]:
        """Embeddings in float32, on the CPU; texts that are too long are cut.

        Args:
            texts: captions.
            batch_size: texts at once.
        """
        found = torch.zeros(len(texts), self._model.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # little padding
        for start in range(0, len(texts), batch_size):
            numbers = order[start : start + batch_size]
            tokens = self._tokenizer(
                [texts[number] for number in numbers],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._device)
            outputs = self._model(**tokens).last_hidden_state
            found[numbers] = sentence_means(outputs, tokens["attention_mask"].bool()).cpu()
        return found


def sentence_means(
    outputs: Float[Tensor, "B T E"], present: Bool[Tensor, "B T"]
) -> Float[Tensor, "B E"]:
    """Mean over the tokens that are no padding, L2-normalised."""
    return F.normalize((outputs * present[:, :, None]).sum(dim=1), dim=-1)
