"""Folded batch norms change nothing but rounding."""

import torch

from model.pretrained.batch_norms import fold_batch_norms
from model.pretrained.offline import efficientnet_lite0


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_folded_batch_norms_change_nothing_but_rounding():
    model = efficientnet_lite0().eval()
    with torch.inference_mode():
        before = model.forward_features(pictures())
        fold_batch_norms(model)
        after = model.forward_features(pictures())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert (after - before).abs().max() < 1e-3
    assert before.std() > 0.1
