"""Views of a picture for training: a part of it, or its mirror image, drawn from its uid."""

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import ConfigError

_LONGEST_RATIO = 4 / 3
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Views of each picture, as BLIP-2 draws them anew at each step."""

    views: int = 1
    """How many to cache. More than one are folders `view-0`, `view-1`, ... in `out`; view 0 is the
    picture as it is evaluated, the others are random crops, half of them mirrored."""

    min_area: float = 0.5
    """Smallest share of a picture that a random crop may show, above 0 and at most 1."""

    view_seed: int = 0
    """Of the crops; with a picture's uid and its view it decides them."""

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ConfigError(f"views: {self.views} is not positive")
        if not 0 < self.min_area <= 1:
            raise ConfigError(f"min_area: {self.min_area} is not above 0 and at most 1")
        if self.view_seed < 0:
            raise ConfigError(f"view_seed: {self.view_seed} is negative")

    def lineage(self, view: int) -> dict[str, Any]:
        """What a view's features must say of it; a single one says nothing."""
        if self.views == 1:
            return {}
        crops = {"min_area": self.min_area, "view_seed": self.view_seed}
        return {"view": view} | (crops if view else {})


def random_view(
    config: ViewsConfig, view: int, transform: Mapping[str, Any]
) -> Callable[[Image.Image, bytes], np.ndarray]:
    """What one view shows of a picture: the same on any machine, in any order.

    Args:
        config: see there.
        view: its number.
        transform: of the encoder, in timm's words; size and interpolation are taken from it.

    Returns:
        A function from an RGB picture and its uid to uint8[H, W, 3].
    """
    _, height, width = transform["input_size"]
    resampling = Image.Resampling[transform["interpolation"].upper()]

    def show(picture: Image.Image, uid: bytes) -> np.ndarray:
        seed = hashlib.sha256(f"{config.view_seed} {view} {uid.hex()}".encode()).digest()
        dice = random.Random(int.from_bytes(seed, "big"))
        box = draw_crop(picture.size, config.min_area, dice)
        shown = picture.crop(box).resize((width, height), resampling)
        if dice.random() < 0.5:
            shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(shown)

    return show


def draw_crop(
    size: tuple[int, int], min_area: float, dice: random.Random
) -> tuple[int, int, int, int]:
    """A random part of a picture: left, top, right, bottom in pixels.

    Its share of the area is even between `min_area` and 1, the logarithm of its width over its
    height between those of 3/4 and 4/3, its place even where it fits. A picture so long that no
    such part fits shows its middle. Only `random()` is asked for: of Python's draws it alone is
    promised to stay as it is.
    """
    width, height = size
    for _ in range(_TRIES):
        area = width * height * (min_area + (1 - min_area) * dice.random())
        ratio = math.exp(math.log(_LONGEST_RATIO) * (2 * dice.random() - 1))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(dice.random() * (width - wide + 1))
            top = int(dice.random() * (height - high + 1))
            return left, top, left + wide, top + high
    wide = min(width, round(height * _LONGEST_RATIO))
    high = min(height, round(width * _LONGEST_RATIO))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
