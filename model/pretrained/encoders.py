"""Frozen vision encoders by name: pictures in, image tokens out."""

import copy
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.pretrained import offline
from model.pretrained.batch_norms import fold_batch_norms
from model.pretrained.digests import weights_digest
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.image_tokens import (
    checked_tokens,
    image_tokens,
    is_vit,
    takes_channels_last,
)
from model.pretrained.image_transforms import SQUASH
from model.pretrained.vision_tower import load_tower
from pipeline.errors import ConfigError, first_line


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which frozen vision encoder, and what of it."""

    encoder: str = "timm:eva_giant_patch14_clip_224.laion400m"
    """`timm:NAME` for any ViT or CNN of timm, `hf:NAME_OR_FOLDER` for the vision tower of a BLIP-2
    of transformers, or `offline:efficientnet_lite0` (weights that come with pip)."""

    weights: str = "pretrained"
    """`pretrained` (from timm's hub), `random` (seeded, for trials), or a .safetensors file."""

    layer: int = -2
    """Block of a ViT whose output is taken, counted from its end: -2 leaves out the last block.
    A CNN has only -1, its last feature map, and takes that whatever stands here; so does a BLIP-2's
    tower, which has been cut before."""

    crop: Literal["own", "squash"] = "own"
    """What of a picture the encoder sees: `own`, as it was evaluated by those who trained it, often
    the middle; `squash`, the whole picture whatever its shape, as BLIP-2."""

    def __post_init__(self) -> None:
        if self.layer >= 0:
            raise ConfigError(f"layer: {self.layer} is not negative (it is counted from the end)")
        folder = Path(self.encoder.removeprefix("hf:")).expanduser()
        if self.encoder.startswith("hf:") and folder.is_dir():
            # Workers and later commands may run elsewhere.
            object.__setattr__(self, "encoder", f"hf:{folder.resolve()}")


class VisionEncoder(nn.Module):
    """A frozen encoder in eval mode."""

    def __init__(self, backbone: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.spec = spec
        self._takes_channels_last = takes_channels_last(backbone)
        self.eval()

    @torch.inference_mode()
    def forward(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P C"]:
        """Image tokens; of a ViT [CLS] comes first, of a CNN the map goes row by row."""
        return image_tokens(self.backbone, pictures, self.spec.layer)

    def transform(self) -> Callable[[Any], Float[Tensor, "3 H W"]]:
        """From an RGB picture (PIL) to the encoder's input, as in its evaluation."""
        return timm.data.create_transform(**self.spec.transform, is_training=False)

    def crop(self) -> Callable[[Any], np.ndarray]:
        """The first part of `transform`: an RGB picture (PIL) to uint8[H, W, 3]."""
        return crop_of(self.spec.transform)

    def normalise(self, pictures: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
        """The second part, bit for bit the same, of many pictures at once and on their device."""
        mean, std = (
            torch.tensor(self.spec.transform[name], device=pictures.device).view(3, 1, 1)
            for name in ("mean", "std")
        )
        upright = pictures.permute(0, 3, 1, 2)
        if not self._takes_channels_last:
            upright = upright.contiguous()
        return upright.float().div_(255).sub_(mean).div_(std)


def crop_of(transform: Mapping[str, Any]) -> Callable[[Any], np.ndarray]:
    """What an encoder sees of an RGB picture (PIL), as uint8[H, W, 3].

    Args:
        transform: of the encoder, in timm's words.
    """
    whole: Any = timm.data.create_transform(**transform, is_training=False)
    steps = whole.transforms[:-2]  # then to a tensor, then normalised

    def crop(picture: Any) -> np.ndarray:
        for step in steps:
            picture = step(picture)
        return np.asarray(picture)

    return crop


def load_encoder(config: EncoderConfig) -> VisionEncoder:
    """Load an encoder on the CPU, in float32.

    Raises:
        ConfigError: the name, the weights or the layer do not exist, or cannot be had here.
    """
    kind, _, name = config.encoder.partition(":")
    if kind == "hf" and name:
        return _vision_tower(name, config)
    if kind == "offline" and name == "efficientnet_lite0":
        if config.weights != "pretrained":
            raise ConfigError(f"weights: {config.weights!r}, but {config.encoder} has its own")
        backbone = offline.efficientnet_lite0()
    elif kind == "timm":
        backbone = _timm_model(name, config)
    else:
        raise ConfigError(
            f"encoder: {config.encoder!r} is neither timm:NAME, hf:NAME_OR_FOLDER nor "
            "offline:efficientnet_lite0"
        )
    backbone.eval()
    transform = _cropped(transform_of_timm(backbone), config)
    digest = weights_digest(backbone)
    layer = _check_layer(backbone, config.layer)
    probe = torch.rand(1, *transform["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = checked_tokens(config.encoder, backbone, probe, layer)
    if not is_vit(backbone):
        backbone = _folded(backbone, probe, tokens).to(memory_format=torch.channels_last)
    weights = config.weights if config.weights in ("pretrained", "random") else "file"
    num_tokens, width = tokens.shape[1:]
    spec = EncoderSpec(config.encoder, weights, digest, layer, num_tokens, width, transform)
    return VisionEncoder(backbone, spec)


def _folded(backbone: nn.Module, picture: Tensor, expected: Tensor) -> nn.Module:
    """The CNN with its batch norms folded, or as it was where folding changes what it computes.

    A norm that is defined after a convolution need not be what runs after it.
    """
    folded = copy.deepcopy(backbone)
    try:
        fold_batch_norms(folded)
        with torch.inference_mode():
            error = (
                image_tokens(folded, picture, -1) - expected
            ).abs().max() / expected.abs().max()
    except RuntimeError:
        return backbone
    return folded if error < 1e-3 else backbone


def _check_layer(backbone: Any, layer: int) -> int:
    if not is_vit(backbone):
        return -1
    if -layer > len(backbone.blocks):
        raise ConfigError(f"layer: {layer}, but the encoder has {len(backbone.blocks)} blocks")
    return layer


def _cropped(transform: dict[str, Any], config: EncoderConfig) -> dict[str, Any]:
    return transform | (SQUASH if config.crop == "squash" else {})


def transform_of_timm(backbone: nn.Module) -> dict[str, Any]:
    """How pictures were made ready where a model of timm was evaluated, in timm's words."""
    known = timm.data.resolve_model_data_config(backbone)
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {name: known[name] for name in names}


def _vision_tower(name: str, config: EncoderConfig) -> VisionEncoder:
    if config.weights != "pretrained":
        raise ConfigError(f"weights: {config.weights!r}, but {config.encoder} has its own")
    tower, transform = load_tower(name)
    transform = _cropped(transform, config)
    probe = torch.zeros(1, *transform["input_size"])
    with torch.inference_mode():
        num_tokens, width = checked_tokens(config.encoder, tower, probe, -1).shape[1:]
    digest = weights_digest(tower)
    spec = EncoderSpec(config.encoder, "pretrained", digest, -1, num_tokens, width, transform)
    return VisionEncoder(tower, spec)


def _timm_model(name: str, config: EncoderConfig) -> nn.Module:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"encoder: timm has no {architecture!r}{hint}")
    if config.weights == "pretrained":
        return _pretrained(name)
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise ConfigError(f"encoder: timm:{name}: {first_line(error)}") from error
    if config.weights != "random":
        _load_weights(model, config.weights)
    return model


def _pretrained(name: str) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"encoder: the weights of timm:{name} cannot be had ({first_line(error)}); "
            "give --weights FILE.safetensors, or --weights random for a trial"
        ) from error


def _load_weights(model: nn.Module, file: str) -> None:
    path = Path(file).expanduser()
    if path.suffix != ".safetensors" or not path.exists():
        raise ConfigError(
            f"weights: {file!r} is neither pretrained, random nor an existing .safetensors file"
        )
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        lines = str(error).splitlines()  # torch names the tensor in the second
        raise ConfigError(f"weights: {file}: {' '.join(lines[:2])}") from error
    unexpected = [
        name for name in unexpected if not name.startswith(("head.", "fc.", "classifier."))
    ]
    if missing or unexpected:
        raise ConfigError(
            f"weights: {file}: {len(missing)} tensors missing ({missing[:1]}), "
            f"{len(unexpected)} unexpected ({unexpected[:1]})"
        )
