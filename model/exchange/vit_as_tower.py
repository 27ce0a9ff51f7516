"""A ViT of timm, or LAVIS's, as the vision tower of BLIP-2 in transformers."""

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig

from model.pretrained.encoders import VisionEncoder
from model.pretrained.image_tokens import is_vit
from model.pretrained.vision_tower import VisionTower, make_tower
from pipeline.errors import ConfigError

_ROOTS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding"
_FIRST = "encoder.layers.0.mlp.fc1.weight"
"""Weights that tell the shape of a tower."""

_AFTER = re.compile(r"(norm|fc_norm|head)\.(weight|bias)")
"""What comes after the blocks: of the second-last block's output nothing is read."""


def tower_tensors(theirs: Mapping[str, Tensor], num_blocks: int, name: str) -> dict[str, Tensor]:
    """Weights of a ViT under timm's names (which are LAVIS's too) as those of a tower.

    The bias of queries, keys and values is (q, 0, v) where the ViT has q_bias and v_bias only.

    Args:
        theirs: the state dict.
        num_blocks: of the tower, from the first on; the others are left out.
        name: for errors.

    Raises:
        ConfigError: the first weight for which a tower has no place.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in theirs.items():
        stem, _, kind = key.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
        if _AFTER.fullmatch(key) or (block and int(block[1]) >= num_blocks):
            continue
        if key in _ROOTS:
            tensors[_ROOTS[key]] = value
        elif stem in _ROOTS:
            tensors[f"{_ROOTS[stem]}.{kind}"] = value
        elif block and block[2] in _BLOCK:
            tensors[f"encoder.layers.{block[1]}.{_BLOCK[block[2]]}.{kind}"] = value
        elif block and block[2] == "attn" and kind == "q_bias":
            values = theirs.get(f"{stem}.v_bias", value[:0])
            bias = torch.cat([value, torch.zeros_like(value), values])
            tensors[f"encoder.layers.{block[1]}.self_attn.qkv.bias"] = bias
        elif not (block and block[2] == "attn" and kind == "v_bias"):
            raise ConfigError(f"{name}: transformers' BLIP-2 has no vision tower with {key}")
    return tensors


def tower_config(
    tensors: Mapping[str, Tensor], *, head_width: int, eps: float, activation: str, name: str
) -> Blip2VisionConfig:
    """The configuration of a tower, from its weights and what they do not tell.

    Raises:
        ConfigError: a weight that tells something is missing, or the positions are no square of
            patches and a [CLS].
    """
    for key in (_PATCHES, _POSITIONS, _FIRST):
        if key not in tensors:
            raise ConfigError(f"{name}: vision tower: {key} is missing")
    patch, positions = tensors[_PATCHES], tensors[_POSITIONS].shape[1]
    side = round((positions - 1) ** 0.5)
    if side * side + 1 != positions:
        raise ConfigError(f"{name}: has {positions} positions, no square of patches and one [CLS]")
    return Blip2VisionConfig(
        hidden_size=patch.shape[0],
        intermediate_size=tensors[_FIRST].shape[0],
        num_hidden_layers=sum(key.endswith("mlp.fc1.weight") for key in tensors),
        num_attention_heads=patch.shape[0] // head_width,
        image_size=side * patch.shape[-1],
        patch_size=patch.shape[-1],
        layer_norm_eps=eps,
        hidden_act=activation,
        qkv_bias="encoder.layers.0.self_attn.qkv.bias" in tensors,
    )


def tower_of(encoder: VisionEncoder) -> VisionTower:
    """The tower that gives the tokens of an encoder.

    Raises:
        ConfigError: no tower can; the text says why.
    """
    backbone: Any = encoder.backbone
    name = encoder.spec.name
    if isinstance(backbone, VisionTower):
        return backbone
    if not is_vit(backbone):
        raise ConfigError(f"{name}: is no ViT, and transformers' BLIP-2 has no other vision tower")
    blocks = backbone.blocks
    tensors = tower_tensors(backbone.state_dict(), len(blocks) + encoder.spec.layer + 1, name)
    config = tower_config(
        tensors,
        head_width=backbone.embed_dim // blocks[0].attn.num_heads,
        eps=blocks[0].norm1.eps,
        activation=_activation(blocks[0].mlp.act, name),
        name=name,
    )
    tower = make_tower(config, tensors, name)
    _check_tokens(encoder, tower)
    return tower


@torch.inference_mode()
def _check_tokens(encoder: VisionEncoder, tower: VisionTower) -> None:
    """Names and shapes can agree where the computation does not."""
    shape = encoder.spec.transform["input_size"]
    picture = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    expected = encoder(picture)
    error = (tower(picture) - expected).abs().max() / expected.abs().max()
    if not error < 1e-4:
        raise ConfigError(
            f"{encoder.spec.name}: transformers' BLIP-2 has no such vision tower: with the same "
            f"weights its tokens differ by {error:.1e} of the largest"
        )


def _activation(module: nn.Module, name: str) -> str:
    layers = timm.layers.activations
    if isinstance(module, layers.GELU):
        return "gelu"
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu"
    if isinstance(module, layers.QuickGELU):
        return "quick_gelu"
    raise ConfigError(f"{name}: its activation {module} has no name in transformers' BLIP-2")
