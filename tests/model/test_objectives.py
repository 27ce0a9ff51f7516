"""The objectives against slow references, false negatives and batches of one included."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.objectives import (
    IGNORED,
    caption_loss,
    caption_targets,
    contrastive_loss,
    draw_negatives,
    match_loss,
    same_pairs,
    similarity,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=seeded(seed))


# Who is no negative of whom, and how close


def test_pairs_are_the_same_by_picture_or_by_caption():
    picture, caption = torch.tensor([1, 2, 1, 4]), torch.tensor([1, 2, 3, 2])
    same = same_pairs(picture[1:3], caption[1:3], all_picture=picture, all_caption=caption).tolist()
    assert same == [[False, True, False, True], [True, False, True, False]]


def test_a_picture_is_as_close_as_its_closest_query():
    image = torch.randn(3, 4, 5, generator=seeded(1))
    text = torch.randn(2, 5, generator=seeded(2))
    found = similarity(image, text)
    for n in range(3):
        for m in range(2):
            best = max(float(query @ text[m]) for query in image[n])
            assert found[n, m].item() == pytest.approx(best, abs=1e-6)


def test_similarities_are_exact_in_mixed_precision():
    """In bfloat16, over a temperature of 0.01, they would be rounded to halves."""
    image = F.normalize(torch.randn(3, 4, 5, generator=seeded(1)), dim=-1)
    text = F.normalize(torch.randn(2, 5, generator=seeded(2)), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = similarity(image, text)
    torch.testing.assert_close(found, similarity(image, text))


# ITC


def slow_contrastive(scores: Tensor, same: Tensor, first: int, smoothing: float):
    """Row by row, over the candidates that are the pair itself or its negatives."""
    plain = smooth = 0.0
    for row in range(len(scores)):
        own = first + row
        candidates = [c for c in range(scores.shape[1]) if c == own or not same[row, c]]
        total = sum(math.exp(scores[row, c]) for c in candidates)
        nats = {c: math.log(total) - float(scores[row, c]) for c in candidates}
        plain += nats[own] / len(scores)
        target = {c: smoothing / len(candidates) for c in candidates}
        target[own] += 1 - smoothing
        smooth += sum(target[c] * nats[c] for c in candidates) / len(scores)
    return smooth, plain


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("first", [0, 3, 4])
def test_contrastive_loss_is_the_slow_ones(first, smoothing):
    scores = 3 * torch.randn(4, 8, dtype=torch.float64, generator=seeded(3))
    keys = torch.randint(0, 5, (2, 8), generator=seeded(4))
    here = slice(first, first + 4)
    same = same_pairs(keys[0, here], keys[1, here], all_picture=keys[0], all_caption=keys[1])
    assert same.sum() > 4  # there are false negatives
    before = same.clone()
    found = contrastive_loss(scores, same, first=first, label_smoothing=smoothing)
    assert [x.item() for x in found] == pytest.approx(
        slow_contrastive(scores, same, first, smoothing), abs=1e-12
    )
    assert torch.equal(same, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrastive_loss_without_false_negatives_is_cross_entropy(smoothing):
    scores = 3 * torch.randn(4, 8, dtype=torch.float64, generator=seeded(5))
    labels = torch.arange(2, 6)
    same = F.one_hot(labels, 8).bool()
    smooth, plain = contrastive_loss(scores, same, first=2, label_smoothing=smoothing)
    torch.testing.assert_close(smooth, F.cross_entropy(scores, labels, label_smoothing=smoothing))
    torch.testing.assert_close(plain, F.cross_entropy(scores, labels))


def test_contrastive_loss_has_the_floor_of_its_smoothing():
    labels = torch.arange(1024)
    scores = torch.full((1024, 1024), 0.0).fill_diagonal_(9.124)
    same = F.one_hot(labels, 1024).bool()
    smooth, _ = contrastive_loss(scores, same, first=0)
    assert smooth.item() == pytest.approx(1.017, abs=1e-3)


@pytest.mark.parametrize("count", [1, 5])
def test_pairs_of_one_picture_have_no_contrast(count):
    scores = torch.randn(count, count, generator=seeded(6)).requires_grad_()
    one = torch.zeros(count, dtype=torch.long)
    same = same_pairs(one, torch.arange(count), all_picture=one, all_caption=torch.arange(count))
    smooth, plain = contrastive_loss(scores, same, first=0)
    assert smooth.item() == plain.item() == 0
    smooth.backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_false_negatives_get_no_gradient():
    scores = torch.randn(4, 4, dtype=torch.float64, generator=seeded(7)).requires_grad_()
    picture = torch.tensor([0, 1, 0, 3])
    places = torch.arange(4)
    same = same_pairs(picture, places, all_picture=picture, all_caption=places)
    contrastive_loss(scores, same, first=0)[0].backward()
    assert scores.grad.isfinite().all()
    assert torch.equal(scores.grad != 0, ~same | torch.eye(4, dtype=torch.bool))


# ITM's negatives


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


# ITG


def test_a_target_is_the_token_that_follows():
    ids = torch.tensor([[7, 8, 9, 10], [7, 8, 0, 0], [7, 0, 0, 0]])
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    none = IGNORED
    expected = [[8, 9, 10, none], [8, none, none, none], [none, none, none, none]]
    assert caption_targets(ids, present).tolist() == expected
    assert ids.tolist()[0] == [7, 8, 9, 10]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_caption_loss_is_cross_entropy(smoothing):
    logits = 2 * torch.randn(3, 5, 11, generator=seeded(10))
    targets = torch.randint(0, 11, (3, 5), generator=seeded(11))
    targets[0, 3:] = IGNORED
    targets[2, 1:] = IGNORED
    smooth, plain, num = caption_loss(logits, targets, label_smoothing=smoothing)
    assert num == 9
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    for found, amount in ((smooth, smoothing), (plain, 0.0)):
        expected = F.cross_entropy(
            flat, wanted, ignore_index=IGNORED, label_smoothing=amount, reduction="sum"
        )
        torch.testing.assert_close(found, expected)


def test_captions_without_targets_have_no_loss():
    logits = torch.randn(2, 3, 5, generator=seeded(12)).requires_grad_()
    smooth, plain, num = caption_loss(logits, torch.full((2, 3), IGNORED))
    assert (smooth.item(), plain.item(), num.item()) == (0, 0, 0)
    smooth.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# ITM


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


# Shapes


def test_shapes_are_as_written(checked):
    objectives = checked.objectives
    keys = torch.arange(3)
    same = objectives.same_pairs(keys[:2], keys[:2], all_picture=keys, all_caption=keys)
    scores = objectives.similarity(torch.randn(2, 4, 5), torch.randn(3, 5))
    objectives.contrastive_loss(scores, same, first=0)
    objectives.draw_negatives(scores, same, hardness=1.0, uniform=uniform(2))
    ids = torch.zeros(2, 4, dtype=torch.long)
    targets = objectives.caption_targets(ids, ids == 0)
    objectives.caption_loss(torch.randn(2, 4, 7), targets)
    objectives.match_loss(torch.randn(3, 2), keys.clamp(max=1), keys == 0)
