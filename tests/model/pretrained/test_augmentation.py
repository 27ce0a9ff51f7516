"""Views: drawn from the uid, inside the picture, of the shapes and sizes that were asked for."""

import math
import random

import numpy as np
import pytest
from PIL import Image

from model.pretrained.augmentation import ViewsConfig, draw_crop, random_view
from pipeline.errors import ConfigError

TRANSFORM = {"input_size": (3, 16, 16), "interpolation": "bicubic"}


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def gradient(width: int = 60, height: int = 50) -> Image.Image:
    """Red grows to the right, green to the bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def test_a_view_is_a_function_of_seed_view_and_uid():
    config = ViewsConfig(views=3)
    first = random_view(config, 1, TRANSFORM)(gradient(), uid(7))
    assert first.shape == (16, 16, 3)
    assert first.dtype == np.uint8
    again = random_view(config, 1, TRANSFORM)
    again(gradient(), uid(8))  # what was drawn before says nothing
    np.testing.assert_array_equal(again(gradient(), uid(7)), first)
    others = [
        again(gradient(), uid(8)),
        random_view(config, 2, TRANSFORM)(gradient(), uid(7)),
        random_view(ViewsConfig(views=3, view_seed=1), 1, TRANSFORM)(gradient(), uid(7)),
    ]
    assert not any(np.array_equal(first, other) for other in others)
    more = random_view(ViewsConfig(views=9), 1, TRANSFORM)(gradient(), uid(7))
    np.testing.assert_array_equal(more, first)  # so views can be added


def test_half_of_the_views_are_mirrored():
    show = random_view(ViewsConfig(views=2), 1, TRANSFORM)
    red = (show(gradient(), uid(number))[8, :, 0].astype(int) for number in range(400))
    mirrored = sum(bool(row[0] > row[-1]) for row in red)
    assert 160 < mirrored < 240


def test_the_whole_of_a_square_is_shown_where_nothing_less_is_allowed():
    square = gradient(50, 50)
    whole = np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC))
    seen = random_view(ViewsConfig(views=2, min_area=1), 1, TRANSFORM)(square, uid(3))
    assert any(np.abs(v.astype(int) - whole).mean() < 20 for v in (seen, seen[:, ::-1]))


@pytest.mark.parametrize("size", [(60, 50), (300, 200), (7, 9), (1, 1), (1000, 20), (20, 1000)])
def test_crops_lie_inside_and_are_as_large_as_asked(size):
    dice = random.Random(0)
    boxes = np.array([draw_crop(size, 0.5, dice) for _ in range(500)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= size[0]).all()
    assert (boxes[:, 3] <= size[1]).all()
    assert (wide > 0).all()
    assert (high > 0).all()
    if min(size) >= 50:
        share = wide * high / math.prod(size)
        assert 0.48 < share.min() < 0.55
        assert share.max() > 0.85
        assert (np.abs(np.log(wide / high)) < math.log(4 / 3) + 0.05).all()
        assert boxes[:, 0].max() > 0.1 * size[0]


def test_a_picture_too_long_shows_its_middle():
    assert draw_crop((1000, 30), 0.5, random.Random(0)) == (480, 0, 520, 30)


@pytest.mark.parametrize(("field", "value"), [("views", 0), ("min_area", 0), ("view_seed", -1)])
def test_impossible_views_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ViewsConfig(**{field: value})
