"""Batch norms of a CNN folded into its convolutions."""

from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into it, in place; for inference only.

    timm's batch norms hold an activation, which stays. The model is left in eval mode.
    """
    model.eval()
    for convolution, norm, parent, name in list(_followed_by_norm(model)):
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        setattr(parent, name, getattr(norm, "act", nn.Identity()))


def _followed_by_norm(
    model: nn.Module,
) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Module, str]]:
    """Convolutions whose next sibling is a batch norm, with that norm's parent and name."""
    for parent in model.modules():
        children = list(parent.named_children())
        for (_, first), (name, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                yield first, second, parent, name
