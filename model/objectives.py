"""Stage 1's three objectives as functions of tensors: ITC, ITM's negatives, ITG.

BLIP-2, section 3.2. Pairs that share a picture or a caption are no negatives of each other
(`same_pairs`): they leave the denominator of ITC and are never drawn for ITM.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

IGNORED = -100
"""A target that counts for nothing, as in PyTorch."""


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
    exact = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        return torch.einsum("nqe,me->nmq", image.to(exact), text.to(exact)).amax(-1)


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


def caption_targets(ids: Int[Tensor, "B T"], present: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """What comes after each token; IGNORED after the last one and on padding."""
    following = ids.masked_fill(~present, IGNORED).roll(-1, dims=1)
    following[:, -1] = IGNORED
    return following


def caption_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], *, label_smoothing: float = 0.1
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Int[Tensor, ""]]:
    """ITG: cross-entropy of the next token.

    Returns:
        Sums over the targets in nats, with smoothing and without, and the number of targets.
    """
    chosen = targets != IGNORED
    logs = logits[chosen].float().log_softmax(dim=-1)
    plain = -logs.gather(1, targets[chosen][:, None]).sum()
    spread = -logs.mean(dim=1).sum()
    return (1 - label_smoothing) * plain + label_smoothing * spread, plain, chosen.sum()


def match_loss(
    logits: Float[Tensor, "N 2"], labels: Int[Tensor, " N"], counted: Bool[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], Int[Tensor, ""]]:
    """ITM: cross-entropy of matched (1) against unmatched (0).

    Returns:
        The sum over the counted pairs in nats, how many of them are right, and their number.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    right = (logits.argmax(dim=1) == labels) & counted
    return losses[counted].sum(), right.sum(), counted.sum()
