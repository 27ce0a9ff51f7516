"""What an image processor does to a picture is what our transform does."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import BlipImageProcessor, BlipImageProcessorPil

from model.pretrained.image_transforms import BLIP_MEAN, BLIP_STD, image_processor, transform_of
from pipeline.errors import ConfigError

SQUASH = {
    "input_size": (3, 28, 28),
    "interpolation": "bicubic",
    "mean": BLIP_MEAN,
    "std": BLIP_STD,
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
CENTER = SQUASH | {"crop_pct": 0.875, "crop_mode": "center", "mean": (0.5,) * 3, "std": (0.5,) * 3}
CENTER |= {"interpolation": "bilinear"}


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("transform", [SQUASH, CENTER])
def test_transform_and_processor_are_each_others_inverse(transform):
    again = transform_of(image_processor(transform).to_dict(), "x")
    assert again == transform


@pytest.mark.parametrize("transform", [SQUASH, CENTER])
def test_both_give_the_same_picture(transform):
    """PIL's resizing exactly; the default one, on tensors, but for a grey level."""
    ours = timm.data.create_transform(**transform, is_training=False)(picture())
    made = image_processor(transform)
    exact = BlipImageProcessorPil(**made.to_dict())(picture(), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(exact, ours, rtol=0, atol=1e-6)
    theirs = made(picture(), return_tensors="pt").pixel_values[0]
    level = 1 / 255 / min(transform["std"])
    assert (theirs - ours).abs().max() < 1.01 * level
    assert ours.std() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "image processor: do_resize is off"),
        ({"rescale_factor": 0.5}, "rescale_factor is not 1/255"),
        ({"resample": 4}, "resample 4 is unknown"),
        ({"size": {"shortest_edge": 28}}, "size .* is unknown"),
        ({"do_center_crop": True}, "with a crop is unknown"),
    ],
)
def test_processors_without_a_transform_are_refused(change, message):
    known = BlipImageProcessor(size={"height": 28, "width": 28}).to_dict()
    with pytest.raises(ConfigError, match=message):
        transform_of(known | change, "folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, "crop_mode 'border' of 28 x 28 has no counterpart"),
        ({"input_size": (3, 28, 14), "crop_mode": "center"}, "'center' of 14 x 28"),
        ({"crop_pct": 0.9}, "crop_mode 'squash'"),
        ({"interpolation": "random"}, "interpolation 'random' has no name"),
    ],
)
def test_transforms_without_a_processor_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        image_processor(SQUASH | change)
