"""Words that are looked up and score have the gradient of both, and none of them is copied."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from model.tied_words import TiedWords

VOCAB_SIZE, WIDTH = 11, 4


class Part(nn.Module):
    """Rows of which some words are a part, and whose scores are squared."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words, self.rows, self.bias = (
            nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
            for shape in ((VOCAB_SIZE, WIDTH), (3, WIDTH), (VOCAB_SIZE,))
        )

    def plain(self, rows: Tensor) -> Tensor:
        """Scores as PyTorch gives them."""
        return F.linear(rows, self.words, self.bias)

    def tied(self) -> Callable[[Tensor], Tensor]:
        words = TiedWords(self.words)
        return lambda rows: words.scores(rows, self.bias)

    def loss(self, scores: Callable[[Tensor], Tensor]) -> Tensor:
        looked_up = F.embedding(torch.tensor([7, 2, 7]), self.words, sparse=True)
        scored = scores(self.rows + looked_up).square().sum()
        again = F.embedding(torch.tensor([2, 0]), self.words, sparse=True)
        return scored + again.pow(3).sum()

    def gradients(self) -> list[Tensor | None]:
        return [weight.grad for weight in self.parameters()]


def test_the_gradient_is_that_of_all_uses():
    one, other = Part(), Part()
    ours, theirs = one.loss(one.tied()), other.loss(other.plain)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(one.gradients(), other.gradients())


def test_several_scores_and_several_times_backward_add_up():
    one, other = Part(), Part()
    ours, theirs = (
        sum(scores(part.rows * power).pow(power).sum() for power in (2, 3))
        for part, scores in ((one, one.tied()), (other, other.plain))
    )
    ours.backward(retain_graph=True)
    ours.backward()
    (2 * theirs).backward()
    torch.testing.assert_close(one.gradients(), other.gradients())


@pytest.mark.parametrize("name", ["words", "rows", "bias"])
def test_what_is_frozen_has_no_gradient(name):
    one, other = Part(), Part()
    for part in (one, other):
        part.get_parameter(name).requires_grad_(False)
    one.tied()(one.rows).square().sum().backward()
    other.plain(other.rows).square().sum().backward()
    assert one.get_parameter(name).grad is None
    torch.testing.assert_close(one.gradients(), other.gradients())


def test_scores_of_less_precision_have_the_gradient_of_the_weights_own():
    one, other = Part(torch.float32), Part(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = one.loss(one.tied()), other.loss(other.plain)
    for loss in losses:
        loss.backward()
    assert {gradient.dtype for gradient in one.gradients()} == {torch.float32}
    torch.testing.assert_close(one.gradients(), other.gradients(), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_all_words_is_not_copied(tied):
    part = Part()
    loss = part.loss(part.tied() if tied else part.plain)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        loss.backward()
    copies = [event for event in profiled.events() if event.name == "aten::copy_"]
    copied = [VOCAB_SIZE, WIDTH] in [event.input_shapes[0] for event in copies]
    assert copied == (not tied)
