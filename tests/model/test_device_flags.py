"""A flag is told as it was when the device got there."""

import pytest
import torch

from model.device_flags import later


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_is_told_as_it_is(flag):
    assert later(torch.tensor(flag))() is flag


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_on_a_gpu_is_told_as_it_was(flag):
    value = torch.tensor(flag, device="cuda")
    ask = later(value)
    value.logical_not_()
    assert ask() is flag
