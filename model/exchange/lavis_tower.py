"""The vision encoder in a checkpoint of LAVIS, where it was trained too, as for captions of COCO.

It is EVA-CLIP's g, 39 blocks of it, with heads 88 wide and norms with an epsilon of 1e-6.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.exchange.lavis import TOWER
from model.exchange.vit_as_tower import tower_config, tower_tensors
from model.pretrained.image_transforms import BLIP_MEAN, BLIP_STD, SQUASH
from model.pretrained.vision_tower import VisionTower, make_tower

_HEAD_WIDTH = 88


def lavis_tower(theirs: Mapping[str, Tensor]) -> tuple[VisionTower, dict[str, Any]] | None:
    """The vision encoder within a checkpoint, and its transform; None where there is none.

    Raises:
        ConfigError: it is another than EVA-CLIP's g.
    """
    found = {
        name.removeprefix(TOWER): value.float()
        for name, value in theirs.items()
        if name.startswith(TOWER)
    }
    if not found:
        return None
    blocks = {int(name.split(".")[1]) for name in found if name.startswith("blocks.")}
    tensors = tower_tensors(found, len(blocks), TOWER)
    config = tower_config(tensors, head_width=_HEAD_WIDTH, eps=1e-6, activation="gelu", name=TOWER)
    transform = {
        "input_size": (3, config.image_size, config.image_size),
        "interpolation": "bicubic",
        "mean": BLIP_MEAN,
        "std": BLIP_STD,
        **SQUASH,
    }
    return make_tower(config, tensors, TOWER), transform
