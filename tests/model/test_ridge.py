"""The control is the regression it claims to be."""

import numpy as np
import pytest
import torch

from model.ridge import caption_means, fit_ridges, pooled


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_pooled_in_float32():
    tokens = torch.full((2, 3000, 2), 60000.0).half()  # their sum is beyond fp16
    assert pooled(tokens).tolist() == [[60000.0, 60000.0]] * 2
    assert pooled(random(2, 5, 3).bfloat16()).dtype == torch.float32


def test_a_picture_is_to_be_mapped_to_the_mean_of_its_captions():
    texts = torch.nn.functional.normalize(random(4, 3), dim=1)
    found = caption_means(texts, torch.tensor([2, 0, 2, 2]), 4)
    mean = texts[[0, 2, 3]].mean(dim=0)
    torch.testing.assert_close(found[2], mean / mean.norm())
    torch.testing.assert_close(found[0], texts[1])
    assert found[[1, 3]].abs().max() == 0


@pytest.mark.parametrize("num_pictures", [5, 40])  # fewer and more than there are columns
def test_each_ridge_is_the_least_squares_solution(num_pictures):
    pictures = random(num_pictures, 12) * torch.logspace(-3, 3, 12) + 7
    targets = random(num_pictures, 4, seed=1)
    x = pictures.double()
    x = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    y = targets.double().numpy()
    for ridge in fit_ridges(pictures, targets, (0.01, 1.0, 100.0)):
        # Least squares over the pictures, an offset, and one row for each weight's penalty.
        root = (ridge.penalty * num_pictures) ** 0.5
        top = np.hstack([x, np.ones((num_pictures, 1))])
        bottom = np.hstack([root * np.eye(12), np.zeros((12, 1))])
        padded = np.vstack([y, np.zeros((12, 4))])
        solution, *_ = np.linalg.lstsq(np.vstack([top, bottom]), padded, rcond=None)
        np.testing.assert_allclose(ridge.weights.numpy(), solution[:12], atol=1e-9)
        expected = top @ solution
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = ridge(pictures)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_map_that_is_linear_is_found_again():
    truth = random(12, 4, seed=2)
    pictures, fresh = random(500, 12), random(50, 12, seed=3)
    (ridge,) = fit_ridges(pictures, pictures @ truth, (1e-9,))
    expected = torch.nn.functional.normalize(fresh @ truth, dim=1)
    torch.testing.assert_close(ridge(fresh), expected, atol=1e-5, rtol=0)


def test_a_large_penalty_leaves_the_mean():
    pictures, targets = random(50, 3), random(50, 4, seed=1) + 5
    (ridge,) = fit_ridges(pictures, targets, (1e12,))
    mean = torch.nn.functional.normalize(targets.mean(0), dim=0)
    torch.testing.assert_close(ridge(pictures), mean.expand(50, 4), atol=1e-5, rtol=0)


def test_a_value_that_never_changes_does_no_harm():
    pictures = random(20, 3)
    pictures[:, 1] = 4.0
    (ridge,) = fit_ridges(pictures, random(20, 2, seed=1), (0.1,))
    assert torch.isfinite(ridge(pictures)).all()
    without = pictures[:, [0, 2]]
    (other,) = fit_ridges(without, random(20, 2, seed=1), (0.1,))
    torch.testing.assert_close(ridge(pictures), other(without), atol=1e-5, rtol=0)


def test_nothing_to_fit_is_refused():
    with pytest.raises(ValueError, match="0 pictures"):
        fit_ridges(random(0, 3), random(0, 2), (1.0,))
    with pytest.raises(ValueError, match="penalties"):
        fit_ridges(random(5, 3), random(5, 2), (1.0, 0.0))
