"""Which of its outputs an encoder's image tokens are: those before `ln_vision`.

`ln_vision` trains with the Q-Former. So of a ViT they are the output of its second-last block with
[CLS] and without the final norm (BLIP-2, section 3.1: 39 of EVA-g's 40 blocks, 23 of CLIP-L's 24),
of a CNN its last feature map.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.pretrained.vision_tower import VisionTower
from pipeline.errors import ConfigError, first_line


def image_tokens(
    backbone: Any, pictures: Float[Tensor, "B 3 H W"], layer: int
) -> Float[Tensor, "B P C"]:
    """What the Q-Former sees; of a ViT [CLS] comes first, of a CNN the map goes row by row.

    Args:
        backbone: of timm, or a `VisionTower`, which has been cut before.
        pictures: as its transform makes them.
        layer: block of a ViT whose output is taken, counted from the end.
    """
    if isinstance(backbone, VisionTower):
        return backbone(pictures)
    if is_vit(backbone):
        return _after_block(backbone, pictures, len(backbone.blocks) + layer)
    maps = backbone.forward_features(pictures.contiguous(memory_format=torch.channels_last))
    if maps.ndim != 4:
        return maps
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":  # Swin's
        maps = maps.movedim(-1, 1)
    return maps.flatten(2).transpose(1, 2)


def checked_tokens(
    name: str, backbone: Any, pictures: Float[Tensor, "B 3 H W"], layer: int
) -> Float[Tensor, "B P C"]:
    """The tokens of an encoder that may be any of timm's; raises ConfigError where it gives none.

    Args:
        name: of the encoder, for the error.
        backbone, pictures, layer: as of `image_tokens`.
    """
    if hasattr(getattr(backbone, "encoder", None), "blocks"):
        raise ConfigError(
            f"encoder: {name} is a classifier around a ViT, whose blocks cannot be chosen there; "
            "take the ViT itself, whose name in timm ends with _enc"
        )
    faults = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
    try:
        tokens = image_tokens(backbone, pictures, layer)
    except faults as error:
        raise ConfigError(f"encoder: {name} gives no tokens: {first_line(error)}") from error
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        raise ConfigError(f"encoder: {name} gives {tuple(tokens.shape)}, not (1, P, C) with P > 1")
    return tokens


def _after_block(backbone: Any, pictures: Tensor, block: int) -> Float[Tensor, "B P C"]:
    """The output of one block of a ViT, and nothing after it."""
    takes = inspect.signature(backbone.forward_intermediates).parameters
    # SigLIP's have no [CLS]; CaiT's gets it after its blocks.
    with_cls = "return_prefix_tokens" in takes and backbone.num_prefix_tokens > 0
    (found,) = backbone.forward_intermediates(
        pictures,
        indices=[block],
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
        **({"return_prefix_tokens": True} if with_cls else {}),
    )
    return torch.cat([found[1], found[0]], dim=1) if with_cls else found


def is_vit(backbone: nn.Module) -> bool:
    """Whether timm's model is a ViT, with blocks of one width of which one can be chosen."""
    return hasattr(backbone, "blocks") and isinstance(getattr(backbone, "embed_dim", None), int)


def takes_channels_last(backbone: nn.Module) -> bool:
    """Whether its pictures are to lie in memory pixel by pixel, which is faster for a CNN."""
    return not isinstance(backbone, VisionTower) and not is_vit(backbone)
