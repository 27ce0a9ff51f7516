"""Image tokens: the right block of a ViT, nothing after it."""

import pytest
import timm
import torch

from model.pretrained.encoders import EncoderConfig
from model.pretrained.image_tokens import image_tokens


@pytest.mark.parametrize(
    ("name", "blocks", "width"),
    [("eva_giant_patch14_clip_224", 39, 1408), ("vit_large_patch14_clip_224", 23, 1024)],
)
def test_of_blip2s_encoders_all_blocks_run_but_the_last(name, blocks, width):
    """Without memory for their weights."""
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=0).eval()
        ran = []
        for block in backbone.blocks:
            block.register_forward_hook(lambda *_: ran.append(None))
        tokens = image_tokens(backbone, torch.empty(1, 3, 224, 224), EncoderConfig().layer)
    assert len(ran) == blocks == len(backbone.blocks) - 1
    assert tokens.shape == (1, 257, width)
