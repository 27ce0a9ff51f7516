"""The vision tower of BLIP-2 in transformers, as a frozen encoder.

Its last norm, `post_layernorm`, is `ln_vision`, which trains with the Q-Former; the frozen tower
ends before it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, Blip2VisionConfig, Blip2VisionModel

from model.pretrained.hub import local_folder
from model.pretrained.image_transforms import image_processor, transform_of
from model.pretrained.weight_files import read_tensors
from pipeline.errors import ConfigError, first_line

PREFIX = "vision_model."
"""Of the tower's weights within a checkpoint."""


def is_frozen(name: str) -> bool:
    """Whether a weight of a checkpoint is one of the tower: its last norm trains."""
    return name.startswith(PREFIX) and not name.startswith(f"{PREFIX}post_layernorm.")


class VisionTower(nn.Module):
    """`Blip2VisionModel` without its last norm."""

    def __init__(self, config: Blip2VisionConfig) -> None:
        super().__init__()
        whole = Blip2VisionModel(config)
        self.config = config
        self.embeddings = whole.embeddings
        self.encoder = whole.encoder

    def forward(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P C"]:
        """What goes into the last norm; [CLS] comes first."""
        return self.encoder(self.embeddings(pictures)).last_hidden_state


def load_tower(name: str) -> tuple[VisionTower, dict[str, Any]]:
    """The tower of a BLIP-2 checkpoint, in float32, and its transform in timm's words.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        ConfigError: it cannot be had, or is no BLIP-2.
    """
    folder = local_folder(name)
    try:
        config = Blip2VisionConfig.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{name}: is no BLIP-2 of transformers ({first_line(error)})") from error
    tensors, _ = read_tensors(folder, is_frozen)
    tensors = {name.removeprefix(PREFIX): v.float() for name, v in tensors.items()}
    return make_tower(config, tensors, name), transform_of(processor.to_dict(), name)


def make_tower(config: Blip2VisionConfig, tensors: Mapping[str, Tensor], name: str) -> VisionTower:
    """A tower with these weights; raises ConfigError where they are not all its weights."""
    with torch.device("meta"):
        tower = VisionTower(config)
    try:
        tower.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ConfigError(f"{name}: vision tower: {' '.join(lines[1:2]).strip()}") from error
    return tower.eval()


def save_tower(tower: VisionTower, transform: Mapping[str, Any], folder: Path) -> None:
    """Write a tower so that `load_tower` reads it: configuration, weights, image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    tower.config.save_pretrained(folder)
    image_processor(transform).save_pretrained(folder)
    tensors = {PREFIX + name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
