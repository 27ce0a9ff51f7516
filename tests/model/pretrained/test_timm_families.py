"""Families of timm: of ViTs the block that is asked for, of CNNs the last map, or one clear error.

Models are cut to a few narrow blocks and see pictures that are wider than high, so that rows and
columns of patches cannot be mistaken for each other.
"""

import pytest
import timm
import torch
from torch import Tensor, nn

from model.costs import encoder_cost
from model.pretrained.encoders import EncoderConfig, load_encoder
from model.pretrained.image_tokens import image_tokens, is_vit
from pipeline.errors import ConfigError

DEPTH, WIDTH = 4, 48
NARROW = {"depth": DEPTH, "embed_dim": WIDTH, "num_heads": 3}
BY_16, BY_14 = {"img_size": (64, 96)}, {"img_size": (56, 84)}
"""Four rows of six patches."""

VITS = [
    ("vit_tiny_patch16_224", 1, NARROW | BY_16),
    ("deit_tiny_distilled_patch16_224", 2, NARROW | BY_16),
    ("deit3_small_patch16_224", 1, NARROW | BY_16),
    ("flexivit_small", 1, NARROW | BY_16),
    ("vit_base_patch16_clip_224", 1, NARROW | BY_16),
    ("vit_base_patch16_siglip_224", 0, NARROW | BY_16),
    ("vit_small_patch14_dinov2", 1, NARROW | BY_14),
    ("vit_small_patch14_reg4_dinov2", 5, NARROW | BY_14),
    ("vit_small_patch16_dinov3", 5, NARROW | BY_16),
    ("eva_giant_patch14_clip_224", 1, NARROW | BY_14),
    ("eva02_tiny_patch14_224", 1, NARROW | BY_14),
    ("beit_base_patch16_224", 1, NARROW | BY_16),
    ("beitv2_base_patch16_224", 1, NARROW | BY_16),
    ("vit_relpos_small_patch16_224", 0, NARROW | BY_16),
    ("vit_relpos_base_patch16_cls_224", 1, NARROW | BY_16),
    ("naflexvit_base_patch16_gap", 4, {"depth": DEPTH}),
    ("tnt_s_legacy_patch16_224", 1, {"depth": DEPTH} | BY_16),
    ("cait_xxs24_224", 0, {"depth": DEPTH} | BY_16),
    ("xcit_nano_12_p16_224", 0, {"depth": DEPTH} | BY_16),
]
"""Name, tokens before those of the patches, and what is made smaller."""

CNNS = [
    ("test_resnet", 96),
    ("test_nfnet", 192),
    ("test_byobnet", 256),
    ("regnetx_002", 368),
    ("test_efficientnet", 256),
    ("mobilenetv3_small_050", 288),
    ("mobilenetv4_conv_small_035", 336),
    ("ghostnet_050", 480),
    ("test_convnext", 64),
    ("test_mambaout", 64),
]
"""Name, and width of the last map."""


def small_vit(name: str, size: dict) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **size).eval()


def outputs_of(module: nn.Module) -> list[Tensor]:
    """Collects what a module puts out; of TNT's two streams the patches'."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output[-1] if isinstance(output, tuple) else output)

    module.register_forward_hook(keep)
    return found


@pytest.mark.parametrize(("name", "num_prefix", "size"), VITS)
def test_a_vit_gives_the_hidden_state_after_the_block_asked_for(name, num_prefix, size):
    backbone = small_vit(name, size)
    assert is_vit(backbone)
    assert len(backbone.blocks) == DEPTH
    after = [outputs_of(block) for block in backbone.blocks]
    normed = outputs_of(backbone.norm)
    height, width = size.get("img_size", (64, 96))
    pictures = torch.randn(2, 3, height, width)
    for layer in (-1, -2, -DEPTH):
        with torch.inference_mode():
            tokens = image_tokens(backbone, pictures, layer)
        (hidden,) = after[layer]
        assert torch.equal(tokens, hidden)
        assert tokens.shape == (2, num_prefix + 4 * 6, backbone.embed_dim)
        assert [len(found) for found in after] == [1] * (DEPTH + layer + 1) + [0] * (-layer - 1)
        assert normed == []
        for found in after:
            found.clear()


@pytest.mark.parametrize(("name", "width"), CNNS)
def test_a_cnn_gives_the_last_of_its_maps_row_by_row(name, width):
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0).eval()
    assert not is_vit(backbone)
    pictures = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        maps = backbone.forward_features(pictures)
        tokens = image_tokens(backbone, pictures, -1)
    if maps.shape[1:] == (2, 3, width):  # as MambaOut's
        maps = maps.movedim(-1, 1)
    assert maps.shape == (2, width, 2, 3)
    assert tokens.shape == (2, 6, width)
    largest = maps.abs().max().item()
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(
                tokens[:, 3 * row + column], maps[..., row, column], rtol=0, atol=1e-4 * largest
            )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("samvit_base_patch16_224", "gives no tokens: Output shape for ViT-SAM must be NCHW"),
        ("pit_ti_224", r"gives \(1, 1, 256\), not \(1, P, C\) with P > 1"),
        ("crossvit_9_240", "gives no tokens: 'list' object has no attribute 'ndim'"),
        ("qwen3_vit_88m", "is a classifier around a ViT, .* whose name in timm ends with _enc"),
    ],
)
def test_a_family_without_such_tokens_is_one_clear_error_before_its_weights_are_made(name, why):
    with pytest.raises(ConfigError, match=rf"^encoder: timm:{name} {why}"):
        encoder_cost(f"timm:{name}", -1)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_no_family_of_timm_ends_otherwise(module):
    """On the meta device, one of each of timm's files: it has tokens, or one line says why not."""
    name = timm.list_models(module=module)[0]
    try:
        cost = encoder_cost(f"timm:{name}", -1)
        told = None
    except ConfigError as error:
        told = str(error)
    if told is None:
        assert min(cost.num_tokens, cost.width) > 1
    else:
        assert told.startswith(f"encoder: timm:{name} ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "eva02_tiny_patch14_224"),
        *("beit_base_patch16_224", "vit_base_patch32_clip_224", "vit_base_patch16_siglip_224"),
        *("vit_small_patch14_dinov2", "resnet18", "tf_efficientnet_lite0", "convnext_atto"),
        *("mobilenetv3_small_050", "regnetx_002", "swin_tiny_patch4_window7_224"),
    ],
)
def test_each_family_is_loaded_at_its_own_size(name):
    encoder = load_encoder(EncoderConfig(encoder=f"timm:{name}", weights="random"))
    pictures = torch.rand(2, *encoder.spec.transform["input_size"])
    tokens = encoder(pictures)
    assert tokens.shape == (2, encoder.spec.num_tokens, encoder.spec.width)
    assert tokens.isfinite().all()
    cost = encoder_cost(f"timm:{name}", encoder.spec.layer)
    assert (cost.num_tokens, cost.width) == (encoder.spec.num_tokens, encoder.spec.width)
    if is_vit(encoder.backbone):
        (found,) = encoder.backbone.forward_intermediates(
            pictures,
            indices=[len(encoder.backbone.blocks) - 2],
            output_fmt="NLC",
            intermediates_only=True,
        )
        torch.testing.assert_close(tokens[:, -found.shape[1] :], found)
