"""ViTs of timm become vision towers of transformers that give the same tokens, or are refused."""

import pytest
import timm
import torch
from torch import nn

from model.exchange.vit_as_tower import tower_of, tower_tensors
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.encoders import EncoderConfig, VisionEncoder, load_encoder
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder_of(backbone: nn.Module, side: int = 28, layer: int = -2) -> VisionEncoder:
    """With weights large enough, biases too, for every part to matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.1, generator=generator)
            parameter.add_(noise)
    spec = EncoderSpec("timm:x", "random", "", layer, 0, 0, {"input_size": (3, side, side)})
    return VisionEncoder(backbone.eval(), spec)


def eva(**options) -> nn.Module:
    size = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.models.eva.Eva(**size, num_classes=0, **options)


def vit(**options) -> nn.Module:
    size = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.models.vision_transformer.VisionTransformer(**size, num_classes=5, **options)


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize(
    "make",
    [
        eva,
        vit,
        lambda: vit(qkv_bias=False),
        lambda: vit(act_layer=timm.layers.activations.QuickGELU),
        lambda: timm.models.vision_transformer.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=4, mlp_ratio=2
        ),
    ],
)
def test_the_tower_gives_the_encoders_tokens(make, layer):
    backbone = make()
    side = backbone.patch_embed.img_size[0]
    encoder = encoder_of(backbone, side, layer)
    tower = tower_of(encoder)
    assert tower.config.num_hidden_layers == len(backbone.blocks) + layer + 1
    assert tower.config.image_size == side
    pictures = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(tower(pictures), encoder(pictures), rtol=1e-4, atol=1e-5)


def test_the_bias_of_evas_keys_is_zero():
    backbone = eva()
    tower = tower_of(encoder_of(backbone))
    attention = backbone.blocks[1].attn
    q, k, v = tower.state_dict()["encoder.layers.1.self_attn.qkv.bias"].split(32)
    assert torch.equal(q, attention.q_bias)
    assert not k.any()
    assert torch.equal(v, attention.v_bias)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vit(pre_norm=True), r"timm:x: transformers' BLIP-2 has no .* norm_pre\.weight"),
        (lambda: vit(init_values=0.1), r"no vision tower with blocks\.0\.ls1\.gamma"),
        (lambda: vit(reg_tokens=2), "no vision tower with reg_token"),
        (lambda: vit(qk_norm=True), r"no vision tower with blocks\.0\.attn\.q_norm"),
        (lambda: vit(no_embed_class=True), "has 4 positions"),
        (lambda: vit(act_layer=nn.SiLU), "its activation SiLU"),
        (lambda: eva(swiglu_mlp=True), "its activation SiLU"),
        (lambda: eva(use_rot_pos_emb=True), "with the same weights its tokens differ by"),
    ],
)
def test_what_no_tower_can_give_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        tower_of(encoder_of(make()))


def test_a_cnn_is_no_tower():
    encoder = load_encoder(EncoderConfig(encoder="timm:test_resnet", weights="random"))
    with pytest.raises(ConfigError, match="timm:test_resnet: is no ViT"):
        tower_of(encoder)


def test_only_what_comes_after_the_blocks_is_left_out():
    after = [
        f"{name}.{kind}" for name in ("norm", "fc_norm", "head") for kind in ("weight", "bias")
    ]
    value = torch.zeros(1)
    kept = tower_tensors(
        dict.fromkeys([*after, "cls_token", "blocks.1.norm1.weight"], value), 1, "x"
    )
    assert list(kept) == ["embeddings.class_embedding"]
    for name in ("norm.gate.weight", "head.fc1.bias", "norm.weight_scale", "head"):
        with pytest.raises(ConfigError, match=f"^x: .* no vision tower with {name}$"):
            tower_tensors({name: value}, 1, "x")
