"""The control: what a linear map makes of the same image tokens in a minute.

Ridge regression from mean-pooled image tokens to a frozen text model's embeddings of the captions.
A trained Q-Former has to beat it by far; where it does not, something is wrong with the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from model.text import text_folder
from pipeline.errors import ConfigError, first_line


class FrozenText:
    """Sentence embeddings: the mean of a frozen text model's outputs, L2-normalised.

    Args:
        name: `offline:minilm`, or `hf:NAME_OR_FOLDER` of any encoder that AutoModel loads.
        device: to compute on.

    Raises:
        ConfigError: the model cannot be had.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        folder = text_folder(name)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{name}: cannot be had ({first_line(error)})") from error
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


def pooled(tokens: Shaped[Tensor, "B P C"]) -> Float[Tensor, "B C"]:
    """Mean of a picture's image tokens, in float32."""
    return tokens.float().mean(dim=1)


def caption_means(
    texts: Float[Tensor, "M E"], owners: Int[Tensor, " M"], num_pictures: int
) -> Float[Tensor, "N E"]:
    """What a picture should be mapped to: the mean of its captions, L2-normalised.

    Args:
        texts: embeddings.
        owners: the picture of each text.
        num_pictures: N; one without captions gets zeros.
    """
    sums = torch.zeros(num_pictures, texts.shape[1]).index_add_(0, owners, texts)
    return F.normalize(sums, dim=-1)


@dataclass(frozen=True)
class Ridge:
    """A linear map from pooled tokens to text embeddings."""

    penalty: float
    """Per picture it was fitted on."""
    mean: Float64[Tensor, " C"]
    scale: Float64[Tensor, " C"]
    weights: Float64[Tensor, "C E"]
    offset: Float64[Tensor, " E"]

    def __call__(self, pictures: Float[Tensor, "N C"]) -> Float[Tensor, "N E"]:
        """Embeddings of pictures by their pooled tokens, in float32, L2-normalised."""
        mapped = (pictures.double() - self.mean) / self.scale @ self.weights + self.offset
        return F.normalize(mapped, dim=-1).float()


def fit_ridges(
    pictures: Float[Tensor, "N C"], targets: Float[Tensor, "N E"], penalties: Sequence[float]
) -> list[Ridge]:
    """Ridge regressions, one for each penalty; the caller keeps the best on its validation split.

    Minimises the mean over pictures of |x W + b - y|^2 plus penalty * |W|^2, with every value of x
    standardised. One eigendecomposition serves all penalties.

    Args:
        pictures: x, pooled tokens.
        targets: y.
        penalties: positive.

    Raises:
        ValueError: there is no picture, or a penalty is not positive.
    """
    if not len(pictures) or not all(penalty > 0 for penalty in penalties):
        raise ValueError(f"{len(pictures)} pictures, penalties {list(penalties)}")
    x, y = pictures.double(), targets.double()
    mean, offset = x.mean(dim=0), y.mean(dim=0)
    scale = x.std(dim=0, correction=0).clamp(min=1e-12)
    x = (x - mean) / scale
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    moments = vectors.T @ (x.T @ (y - offset) / len(x))
    return [
        Ridge(penalty, mean, scale, vectors @ (moments / (values + penalty)[:, None]), offset)
        for penalty in penalties
    ]
