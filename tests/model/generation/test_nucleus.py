"""A nucleus is the fewest tokens that hold their share, each drawn in proportion."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from model.generation.nucleus import draw_nucleus

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [30, 3000])  # all looked at, or only where the likeliest hold less
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_a_nucleus_is_the_fewest_tokens_in_proportion(size, top_p):
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(size, generator=generator)
    shares = scores.double().softmax(0)
    order = sorted(range(size), key=lambda word: -shares[word].item())
    held, kept = 0.0, []
    while held < top_p and len(kept) < size:
        kept.append(order[len(kept)])
        held += shares[kept[-1]].item()
    # In the middle of the shares, some of them, and at both ends of all.
    edges = F.pad(shares[kept].cumsum(0) / held, (1, 0))
    some = torch.linspace(0, len(kept) - 1, 40).long()
    draws = torch.cat([(edges[1:] + edges[:-1])[some] / 2, torch.tensor([0, 1 - 2**-53]).double()])
    found = draw_nucleus(scores.expand(len(draws), -1), draws, top_p)
    assert found.tolist() == [*(kept[place] for place in some), kept[0], kept[-1]]


def test_what_has_no_probability_is_never_drawn():
    scores = torch.full((3, 700), -math.inf)
    scores[:, [600, 3]] = torch.tensor([1.0, 0.0])
    draws = torch.tensor([0.0, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw_nucleus(scores, draws, 1.0).tolist() == [600, 3, 3]


def test_a_row_draws_the_same_whether_others_need_more():
    sharp, flat = torch.zeros(2, 2000)
    sharp[[7, 8, 9]] = 12.0  # equal, so that their order is a matter of how they were sorted
    draws = torch.linspace(0.05, 0.95, 12).double()
    alone = draw_nucleus(sharp.expand(12, -1), draws, 0.9)
    both = draw_nucleus(torch.stack([sharp, flat]).repeat(12, 1), draws.repeat_interleave(2), 0.9)
    assert both[::2].equal(alone)
    assert sorted(set(alone.tolist())) == [7, 8, 9]
    assert both[1::2].unique().numel() == 12
