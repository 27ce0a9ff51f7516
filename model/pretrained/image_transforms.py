"""Transforms of pictures: image processors of transformers as timm's words, and back."""

from collections.abc import Mapping
from typing import Any

from transformers import BlipImageProcessor

from pipeline.errors import ConfigError

BLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
BLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colours, by which BLIP-2 normalises pictures; CLIP's."""

SQUASH = {"crop_pct": 1.0, "crop_mode": "squash"}
"""The whole picture whatever its shape, as BLIP-2 sees it; in timm's words."""

_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""timm's names, PIL's numbers."""


def transform_of(processor: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An image processor's configuration as arguments of `timm.data.create_transform`.

    Raises:
        ConfigError: timm has no such transform.
    """
    size, crop = processor["size"], processor.get("crop_size")
    steps = ("do_resize", "do_rescale", "do_normalize")
    if missing := [step for step in steps if not processor.get(step)]:
        raise ConfigError(f"{name}: image processor: {missing[0]} is off")
    if abs(processor["rescale_factor"] * 255 - 1) > 1e-6:
        raise ConfigError(f"{name}: image processor: rescale_factor is not 1/255")
    named = {number: word for word, number in _INTERPOLATIONS.items()}
    if processor["resample"] not in named:
        raise ConfigError(f"{name}: image processor: resample {processor['resample']} is unknown")
    if processor.get("do_center_crop"):
        if set(size) != {"shortest_edge"} or crop is None:
            raise ConfigError(f"{name}: image processor: size {size} with a crop is unknown")
        shape, share, mode = crop, crop["height"] / size["shortest_edge"], "center"
    elif set(size) == {"height", "width"}:
        shape, share, mode = size, 1.0, "squash"
    else:
        raise ConfigError(f"{name}: image processor: size {size} is unknown")
    return {
        "input_size": (3, shape["height"], shape["width"]),
        "interpolation": named[processor["resample"]],
        "mean": tuple(processor["image_mean"]),
        "std": tuple(processor["image_std"]),
        "crop_pct": share,
        "crop_mode": mode,
    }


def image_processor(transform: Mapping[str, Any]) -> BlipImageProcessor:
    """The image processor of transformers that does what a transform of timm does.

    Where a crop leaves an odd number of pixels over, it may lie one pixel beside timm's.

    Raises:
        ConfigError: there is none.
    """
    _, height, width = transform["input_size"]
    mode, shape = transform["crop_mode"], {"height": height, "width": width}
    if transform["interpolation"] not in _INTERPOLATIONS:
        raise ConfigError(f"transform: interpolation {transform['interpolation']!r} has no name")
    given: dict[str, Any] = {"size": shape}
    if mode == "center" and height == width:
        edge = int(height / transform["crop_pct"])
        given = {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": shape}
    elif mode != "squash" or transform["crop_pct"] != 1:
        raise ConfigError(f"transform: crop_mode {mode!r} of {width} x {height} has no counterpart")
    return BlipImageProcessor(
        resample=_INTERPOLATIONS[transform["interpolation"]],
        image_mean=list(transform["mean"]),
        image_std=list(transform["std"]),
        **given,
    )
