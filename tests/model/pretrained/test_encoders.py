"""Vision encoders: the right block, the right tokens, and nothing that trains."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from model.pretrained.digests import weights_digest
from model.pretrained.encoders import EncoderConfig, load_encoder
from pipeline.errors import ConfigError

VIT = EncoderConfig(encoder="timm:vit_tiny_patch16_224", weights="random")


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def hooked(encoder, block: int) -> list[torch.Tensor]:
    """Collects what a block puts out, while the encoder runs."""
    outputs: list[torch.Tensor] = []
    encoder.backbone.blocks[block].register_forward_hook(lambda *args: outputs.append(args[2]))
    return outputs


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [("vit_tiny_patch16_224", 197), ("eva02_tiny_patch14_224", 257), ("vit_small_patch32_224", 50)],
)
def test_a_vit_gives_the_second_last_blocks_output_with_cls_and_no_norm(name, num_tokens):
    encoder = load_encoder(EncoderConfig(encoder=f"timm:{name}", weights="random"))
    outputs = hooked(encoder, -2)
    never = hooked(encoder, -1)
    tokens = encoder(pictures())
    assert torch.equal(tokens, outputs[0])
    assert never == []
    assert tokens.shape == (2, num_tokens, encoder.spec.width)
    assert (encoder.spec.num_tokens, encoder.spec.layer) == (num_tokens, -2)


def test_the_layer_can_be_chosen():
    encoder = load_encoder(EncoderConfig(encoder=VIT.encoder, weights="random", layer=-12))
    outputs = hooked(encoder, 0)
    assert torch.equal(encoder(pictures()), outputs[0])


@pytest.mark.parametrize("name", ["test_vit", "resnet18", "mixer_s32_224"])
def test_crops_that_are_normalised_together_are_the_transform_bit_for_bit(name):
    encoder = load_encoder(EncoderConfig(encoder=f"timm:{name}", weights="random"))
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 140, 3), dtype=np.uint8)
    seen = [Image.fromarray(pixels) for pixels in noise]
    crops = np.stack([encoder.crop()(picture) for picture in seen])
    assert crops.dtype == np.uint8
    expected = torch.stack([encoder.transform()(picture) for picture in seen])
    found = encoder.normalise(torch.from_numpy(crops))
    assert torch.equal(found, expected)
    assert torch.equal(encoder(found), encoder(expected))


def test_a_picture_can_be_squashed_whole():
    picture = Image.new("RGB", (300, 100))
    picture.paste("white", (0, 0, 20, 100))  # beyond the middle
    own, squashed = (
        load_encoder(EncoderConfig(encoder="timm:test_vit", weights="random", crop=crop))
        for crop in ("own", "squash")
    )
    assert own.transform()(picture).amax() == own.transform()(picture).amin()
    seen = squashed.transform()(picture)
    assert seen.amax() > seen.amin()
    assert (squashed.spec.transform["crop_mode"], squashed.spec.transform["crop_pct"]) == (
        "squash",
        1.0,
    )


@pytest.mark.parametrize(
    ("name", "num_tokens", "width"),
    [
        ("resnet18", 49, 512),
        ("tf_efficientnet_lite0", 49, 1280),
        ("swin_tiny_patch4_window7_224", 49, 768),
        ("convnext_atto", 49, 320),
    ],
)
def test_a_cnn_gives_its_last_map_row_by_row(name, num_tokens, width):
    encoder = load_encoder(EncoderConfig(encoder=f"timm:{name}", weights="random"))
    assert (encoder.spec.num_tokens, encoder.spec.width) == (num_tokens, width)
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0).eval()
    with torch.inference_mode():
        maps = plain.forward_features(pictures())
    if maps.shape[1] == width:
        maps = maps.movedim(1, -1)
    torch.testing.assert_close(encoder(pictures()), maps.flatten(1, 2), rtol=1e-3, atol=1e-4)


def test_nothing_trains():
    encoder = load_encoder(VIT)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert not encoder(pictures()).requires_grad


def test_random_weights_are_the_same_each_time_and_the_digest_tells_others():
    a, b = load_encoder(VIT), load_encoder(VIT)
    assert a.spec == b.spec
    with torch.no_grad():
        b.backbone.cls_token[0, 0, 0] += 1
    assert weights_digest(b.backbone) != a.spec.weights_digest


def test_weights_come_from_a_safetensors_file(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    config = EncoderConfig(encoder=VIT.encoder, weights=str(tmp_path / "weights.safetensors"))
    encoder = load_encoder(config)
    assert torch.equal(encoder.backbone.cls_token, model.cls_token)

    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match=r"damaged\.safetensors"):
        load_encoder(
            EncoderConfig(encoder=VIT.encoder, weights=str(tmp_path / "damaged.safetensors"))
        )

    short = dict(model.state_dict())
    del short["cls_token"]
    save_file(short, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"1 tensors missing \(\['cls_token'\]\)"):
        load_encoder(config)


def test_the_transform_is_the_encoders_own():
    encoder = load_encoder(EncoderConfig(encoder="offline:efficientnet_lite0"))
    white = encoder.transform()(Image.new("RGB", (300, 256), "white"))
    assert white.shape == (3, 224, 224)
    assert torch.allclose(white, torch.ones(()))  # mean and standard deviation are a half


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "timm:vit_tinny_patch16_224"}, "did you mean vit_tiny_patch16_224"),
        ({"encoder": "offline:resnet"}, "neither timm:NAME, hf:NAME_OR_FOLDER nor offline"),
        ({"encoder": VIT.encoder, "weights": "weights.bin"}, r"weights: 'weights\.bin' is neither"),
        ({"encoder": VIT.encoder, "weights": "random", "layer": -13}, "has 12 blocks"),
        ({"encoder": "timm:crossvit_9_240", "weights": "random"}, "crossvit_9_240 gives no tokens"),
        ({"encoder": "timm:pit_ti_224", "weights": "random"}, "pit_ti_224 gives"),
        ({"encoder": "timm:resnet18.bogus", "weights": "random"}, r"resnet18\.bogus"),
        ({"encoder": "offline:efficientnet_lite0", "weights": "random"}, "has its own"),
    ],
)
def test_what_does_not_exist_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(EncoderConfig(**options))


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Batch norms that have seen data: fresh ones are identities, which hide a wrong folding."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


@pytest.mark.parametrize(("name", "folds"), [("resnet18", True), ("repvit_m0_9", False)])
def test_norms_are_folded_only_where_that_changes_nothing(tmp_path, name, folds):
    model = with_statistics(timm.create_model(name, num_classes=0))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    weights = str(tmp_path / "weights.safetensors")
    encoder = load_encoder(EncoderConfig(encoder=f"timm:{name}", weights=weights))
    with torch.inference_mode():
        expected = model.forward_features(pictures()).flatten(2).transpose(1, 2)
    assert (encoder(pictures()) - expected).abs().max() < 1e-3 * expected.abs().max()
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (not norms) == folds


def test_a_vit_without_cls_gives_its_patches():
    config = EncoderConfig(encoder="timm:vit_base_patch16_siglip_224", weights="random")
    assert load_encoder(config).spec.num_tokens == 196


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tokens_on_a_gpu_are_those_of_the_cpu():
    encoder = load_encoder(VIT)
    expected = encoder(pictures())
    encoder.to("cuda")
    with torch.autocast("cuda", torch.float16):
        tokens = encoder(pictures().to("cuda")).float().cpu()
    torch.testing.assert_close(tokens, expected, rtol=2e-2, atol=2e-2)
