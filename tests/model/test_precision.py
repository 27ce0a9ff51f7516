"""Scores are compared in full precision."""

import pytest
import torch

from model.precision import exact


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_widened_and_nothing_is_narrowed(given, expected):
    values = torch.tensor([1.0, 0.25], dtype=given)
    assert exact(values).dtype == expected
    assert exact(values).tolist() == [1.0, 0.25]
