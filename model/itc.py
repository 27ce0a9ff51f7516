"""ITC: a picture and its caption are closer than a picture and another's (BLIP-2, section 3.2).

Pairs that share a picture or a caption are no negatives of each other (`same_pairs`): they leave
the denominator here, and ITM never draws them.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.precision import exact


def same_pairs(
    picture: Int[Tensor, " B"],
    caption: Int[Tensor, " B"],
    *,
    all_picture: Int[Tensor, " G"],
    all_caption: Int[Tensor, " G"],
) -> Bool[Tensor, "B G"]:
    """Which pairs share a picture or a caption; each pair shares both with itself.

    Args:
        picture, caption: keys, equal where picture or caption are.
        all_picture, all_caption: those of all ranks.
    """
    return (picture[:, None] == all_picture) | (caption[:, None] == all_caption)


def similarity(image: Float[Tensor, "N Q E"], text: Float[Tensor, "M E"]) -> Float[Tensor, "N M"]:
    """A picture is as close to a caption as its closest query output is: a cosine."""
    # The meta device, where operations are counted, knows no autocast.
    kind = "cpu" if image.is_meta else image.device.type
    with torch.autocast(kind, enabled=False):
        return torch.einsum("nqe,me->nmq", exact(image), exact(text)).amax(-1)


def contrastive_loss(
    scores: Float[Tensor, "B G"],
    same: Bool[Tensor, "B G"],
    *,
    first: int,
    label_smoothing: float = 0.1,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """One direction of ITC: cross-entropy of each pair against its negatives.

    Args:
        scores: similarities over the temperature.
        same: pairs that are no negatives of each other.
        first: where this rank's pairs begin among the G.
        label_smoothing: share of each target spread over the candidates.

    Returns:
        Nats a pair, with smoothing and without.
    """
    own = torch.arange(len(scores), device=scores.device) + first
    hidden = same.clone()
    hidden.scatter_(1, own[:, None], False)
    logs = scores.masked_fill(hidden, float("-inf")).log_softmax(dim=1)
    plain = -logs.gather(1, own[:, None]).mean()
    spread = -logs.masked_fill(hidden, 0).sum(dim=1) / (~hidden).sum(dim=1)
    return (1 - label_smoothing) * plain + label_smoothing * spread.mean(), plain
