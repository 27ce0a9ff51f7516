"""The vision encoder in a checkpoint of LAVIS becomes a tower, or is refused."""

import pytest
import torch
from torch import Tensor

from model.exchange.lavis_tower import lavis_tower
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def vision_encoder(width: int = 88, blocks: int = 2, side: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 10

    found = {
        "cls_token": some(1, 1, width),
        "pos_embed": some(1, side * side + 1, width),
        "patch_embed.proj.weight": some(width, 3, 14, 14),
        "patch_embed.proj.bias": some(width),
    }
    for n in range(blocks):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (2 * width, width),
            "mlp.fc1.bias": (2 * width,),
            "mlp.fc2.weight": (width, 2 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            found[f"blocks.{n}.{name}"] = some(*shape)
    return {f"visual_encoder.{name}": value for name, value in found.items()}


def test_the_vision_encoder_in_the_file_is_a_tower():
    theirs = vision_encoder(width=176, side=3)
    tower, transform = lavis_tower(theirs)
    assert tower.config.num_attention_heads == 2
    assert (tower.config.image_size, tower.config.num_hidden_layers) == (42, 2)
    assert (transform["input_size"], transform["crop_mode"]) == ((3, 42, 42), "squash")
    bias = tower.state_dict()["encoder.layers.1.self_attn.qkv.bias"]
    assert torch.equal(bias[:176], theirs["visual_encoder.blocks.1.attn.q_bias"])
    assert torch.equal(bias[176:352], torch.zeros(176))
    assert torch.equal(bias[352:], theirs["visual_encoder.blocks.1.attn.v_bias"])
    assert lavis_tower({"query_tokens": torch.zeros(1)}) is None


def test_another_vision_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"no vision tower with ln_pre\.weight"):
        lavis_tower({"visual_encoder.ln_pre.weight": torch.zeros(1)})
    short = vision_encoder()
    del short["visual_encoder.pos_embed"]
    with pytest.raises(ConfigError, match=r"embeddings\.position_embedding is missing"):
        lavis_tower(short)
    short = vision_encoder()
    del short["visual_encoder.blocks.1.attn.v_bias"]
    with pytest.raises(ConfigError, match=r"size mismatch .*layers\.1\.self_attn\.qkv\.bias"):
        lavis_tower(short)
