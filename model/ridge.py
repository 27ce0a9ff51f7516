"""The control: what a linear map makes of the same image tokens in a minute.

Ridge regression from mean-pooled image tokens to a frozen text model's embeddings of the captions
(`model.pretrained.sentences`).
A trained Q-Former has to beat it by far; where it does not, something is wrong with the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor


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
