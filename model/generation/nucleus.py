"""Nucleus sampling: draws from the fewest tokens that hold a share of the probability."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

_LIKELY = 512
"""A trained head's nucleus is seldom larger, and to find so many is far less than to sort all."""


def draw_nucleus(
    scores: Float[Tensor, "R V"], draws: Float64[Tensor, " R"], top_p: float
) -> Int[Tensor, " R"]:
    """A token of each row's nucleus, the fewest tokens that hold `top_p` of the probability.

    The nucleus's shares, the largest first, are laid end to end; the draw, in [0, 1), is where
    along them to look.
    """
    shares = scores.double().softmax(dim=1)
    largest, order = shares.topk(min(_LIKELY, shares.shape[1]), dim=1)
    chosen = order.gather(1, _place(largest, draws, top_p))
    wider = largest.sum(dim=1) < top_p
    if wider.any():
        largest, order = shares[wider].sort(dim=1, descending=True)
        chosen[wider] = order.gather(1, _place(largest, draws[wider], top_p))
    return chosen[:, 0]


def _place(
    shares: Float64[Tensor, "R N"], draws: Float64[Tensor, " R"], top_p: float
) -> Int[Tensor, "R 1"]:
    """Where in the nucleus the draws are; shares fall along a row."""
    before = shares.cumsum(dim=1) - shares
    shares = shares.masked_fill(before >= top_p, 0)
    upto = shares.cumsum(dim=1)
    place = torch.searchsorted(upto, draws[:, None] * upto[:, -1:], right=True)
    return place.minimum(shares.count_nonzero(dim=1)[:, None] - 1)  # rounding, for a draw next to 1
