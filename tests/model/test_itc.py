"""ITC against a slow reference, false negatives and batches of one included."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.itc import contrastive_loss, same_pairs, similarity

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


# The loss


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


def test_shapes_are_as_written(checked):
    keys = torch.arange(3)
    itc = checked.itc
    same = itc.same_pairs(keys[:2], keys[:2], all_picture=keys, all_caption=keys)
    scores = itc.similarity(torch.randn(2, 4, 5), torch.randn(3, 5))
    itc.contrastive_loss(scores, same, first=0)
