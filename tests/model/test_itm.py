"""ITM's negatives and its loss against slow references."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.itm import draw_negatives, match_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=seeded(seed))


# Negatives


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9)),
    hardness=st.sampled_from([0.0, 0.3, 1.0]),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    scale=st.sampled_from([0.0, 1.0, 2000.0]),
)
def test_what_is_forbidden_is_never_drawn(seed, shape, hardness, share, scale):
    generator = seeded(seed)
    scores = scale * torch.randn(shape, generator=generator)
    same = torch.rand(shape, generator=generator) < share
    numbers = torch.rand(shape[0], dtype=torch.float64, generator=generator)
    for ends in (numbers, torch.zeros_like(numbers), torch.full_like(numbers, 1 - 2**-53)):
        drawn, found = draw_negatives(scores, same, hardness=hardness, uniform=ends)
        assert torch.equal(found, ~same.all(dim=1))
        assert ((drawn >= 0) & (drawn < shape[1])).all()
        assert not same.gather(1, drawn[:, None])[found].any()


def frequencies(scores: Tensor, same: Tensor, hardness: float, draws: int = 40_000) -> Tensor:
    """How often each candidate of one row is drawn."""
    drawn, found = draw_negatives(
        scores.expand(draws, -1), same.expand(draws, -1), hardness=hardness, uniform=uniform(draws)
    )
    assert found.all()
    return torch.bincount(drawn, minlength=scores.shape[0]).double() / draws


def test_negatives_are_drawn_by_chance_by_similarity_or_between():
    scores = torch.tensor([2.0, 0.5, -1.0, 5.0, 0.0, 1.0])
    same = torch.tensor([False, False, False, True, False, False])
    weights = [0 if s else math.exp(x) for x, s in zip(scores.tolist(), same.tolist(), strict=True)]
    hard = torch.tensor([w / sum(weights) for w in weights]).double()
    easy = torch.tensor([0.2, 0.2, 0.2, 0.0, 0.2, 0.2]).double()
    for hardness in (0.0, 0.25, 1.0):
        expected = hardness * hard + (1 - hardness) * easy
        errors = (frequencies(scores, same, hardness) - expected).abs()
        # Five standard deviations of a count of draws.
        assert (errors <= 5 * (expected * (1 - expected) / 40_000).sqrt()).all(), hardness


def test_equal_numbers_draw_equal_negatives_whatever_the_other_rows():
    scores = torch.randn(6, 9, generator=seeded(8))
    same = F.one_hot(torch.arange(6), 9).bool()
    numbers = uniform(6, 9)
    drawn, _ = draw_negatives(scores, same, hardness=0.7, uniform=numbers)
    part, _ = draw_negatives(scores[2:4], same[2:4], hardness=0.7, uniform=numbers[2:4])
    assert torch.equal(part, drawn[2:4])


# The loss


def test_match_loss_is_cross_entropy_of_the_counted():
    logits = torch.randn(6, 2, generator=seeded(13))
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    counted = torch.tensor([True, False, True, True, False, True])
    total, right, num = match_loss(logits, labels, counted)
    assert num == 4
    torch.testing.assert_close(
        total, F.cross_entropy(logits[counted], labels[counted], reduction="sum")
    )
    answers = [int(b > a) for a, b in logits.tolist()]
    pairs = zip(answers, labels.tolist(), counted.tolist(), strict=True)
    assert right == sum(answer == label for answer, label, counts in pairs if counts)


def test_match_loss_at_the_prior_is_the_known_number():
    prior = torch.tensor([[2 / 3, 1 / 3]]).log().expand(3, 2)
    counted = torch.ones(3, dtype=torch.bool)
    total, right, num = match_loss(prior, torch.tensor([1, 0, 0]), counted)
    assert (total / num).item() == pytest.approx(0.6365, abs=1e-4)
    assert right == 2


def test_match_loss_of_nothing_is_zero():
    logits = torch.randn(3, 2, generator=seeded(14)).requires_grad_()
    none = torch.zeros(3, dtype=torch.bool)
    total, right, num = match_loss(logits, torch.tensor([1, 0, 0]), none)
    assert (total.item(), right.item(), num.item()) == (0, 0, 0)
    total.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_shapes_are_as_written(checked):
    itm = checked.itm
    same = torch.eye(2, 3).bool()
    itm.draw_negatives(torch.randn(2, 3), same, hardness=1.0, uniform=uniform(2))
    labels = torch.tensor([1, 0, 0])
    itm.match_loss(torch.randn(3, 2), labels, labels == 0)
