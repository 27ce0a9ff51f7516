"""ITM: which pairs belong together (BLIP-2, section 3.2), against negatives that ITC finds hard."""

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from model.precision import exact


def draw_negatives(
    scores: Float[Tensor, "B G"],
    same: Bool[Tensor, "B G"],
    *,
    hardness: float,
    uniform: Float64[Tensor, " B"],
) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """For each pair one that is not its own: by chance, by similarity, or between the two.

    Args:
        scores: similarities over the temperature.
        same: pairs that may not be drawn.
        hardness: weight of softmax(scores) against equal weights; 1 is BLIP-2's.
        uniform: one number in [0, 1) a pair; whoever gets equal ones draws equal negatives.

    Returns:
        The negatives, and which pairs have any; what the others get means nothing.
    """
    allowed = ~same
    found = allowed.any(dim=1)
    # A row without any negative would be NaN; it is left out by `found`.
    masked = scores.double().masked_fill(~allowed & found[:, None], float("-inf"))
    equal = allowed.double() / allowed.sum(dim=1, keepdim=True).clamp(min=1)
    weights = (1 - hardness) * equal + hardness * masked.softmax(dim=1)
    reached = weights.cumsum(dim=1)
    drawn = (reached > uniform[:, None] * reached[:, -1:]).int().argmax(dim=1)
    return drawn, found


def match_loss(
    logits: Float[Tensor, "N 2"], labels: Int[Tensor, " N"], counted: Bool[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], Int[Tensor, ""]]:
    """ITM: cross-entropy of matched (1) against unmatched (0).

    Returns:
        The sum over the counted pairs in nats, how many of them are right, and their number.
    """
    losses = F.cross_entropy(exact(logits), labels, reduction="none")
    right = (logits.argmax(dim=1) == labels) & counted
    return (losses * counted).sum(), right.sum(), counted.sum()
