"""Which of its outputs an encoder's image tokens are: those before `ln_vision`.

`ln_vision` trains with the Q-Former. So of a ViT they are the output of its second-last block with
[CLS] and without the final norm (BLIP-2, section 3.1: 39 of EVA-g's 40 blocks, 23 of CLIP-L's 24),
of a CNN its last feature map.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.pretrained.vision_tower import VisionTower


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
    if takes_channels_last(backbone):
        maps = backbone.forward_features(pictures.contiguous(memory_format=torch.channels_last))
        if maps.ndim == 4 and maps.shape[1] != backbone.num_features:  # Swin's maps are B H W C
            maps = maps.movedim(-1, 1)
        return maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps
    has_prefix = getattr(backbone, "num_prefix_tokens", 0) > 0  # SigLIP's have no [CLS]
    (found,) = backbone.forward_intermediates(
        pictures,
        indices=[len(backbone.blocks) + layer],
        return_prefix_tokens=has_prefix,
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return torch.cat([found[1], found[0]], dim=1) if has_prefix else found


def is_vit(backbone: nn.Module) -> bool:
    """Whether timm's model is a ViT, with blocks of which one can be chosen."""
    return hasattr(backbone, "blocks") and hasattr(backbone, "pos_embed")


def takes_channels_last(backbone: nn.Module) -> bool:
    """Whether its pictures are to lie in memory pixel by pixel, which is faster for a CNN."""
    return not isinstance(backbone, VisionTower) and not is_vit(backbone)
