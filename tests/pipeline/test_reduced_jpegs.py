"""A JPEG is decoded no larger than it must be, and looks as if it were decoded whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.pictures import PictureConfig, decode_stored, store


def photo(seed: int, width: int, height: int) -> Image.Image:
    """What has detail of every size, as photos have: noise of many grains, the coarse strongest."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for grain in (1, 2, 4, 8, 16, 32, 64, 128):
        shape = (-(-height // grain), -(-width // grain), 3)
        coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(fine, float) - 127.5) * grain**0.75
    return Image.fromarray((127.5 + total * (55 / total.std())).clip(0, 255).astype(np.uint8))


def ssim(one: Image.Image, other: Image.Image, side: int = 7) -> float:
    """Mean structural similarity of two pictures' greys (Wang et al. 2004), uniform windows."""

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
        return (windows + sums[:-side, :-side]) / side**2

    x, y = (np.asarray(picture.convert("L"), float) for picture in (one, other))
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(likeness.mean())


@pytest.fixture
def decoded_sizes(monkeypatch):
    """The sizes at which JPEGs are decoded, as they are."""
    sizes = []
    load = JpegImageFile.load

    def record(picture):
        if picture.tile:
            sizes.append(picture.size)
        return load(picture)

    monkeypatch.setattr(JpegImageFile, "load", record)
    return sizes


@pytest.mark.parametrize(
    ("size", "short", "scale"),
    [
        ((1200, 900), 56, 8),
        ((1009, 1009), 62, 8),  # does not divide: the last decoded pixel shows an eighth
        ((1201, 1805), 150, 4),
        ((1023, 769), 128, 2),
        ((1023, 769), 193, 1),  # half would be less than twice the target
        ((385, 1001), 100, 1),
    ],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0}])
def test_a_jpeg_is_decoded_at_reduced_size_and_looks_as_if_it_were_not(
    encode, monkeypatch, decoded_sizes, size, short, scale, options
):
    data = encode(photo(1, *size), "JPEG", quality=90, **options)
    config = PictureConfig(short_side_px=short)
    reduced = store(data, config)
    assert decoded_sizes == [tuple(-(-side // scale) for side in size)]
    assert min(decoded_sizes[0]) >= min(2 * short, min(size))
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    full = store(data, config)
    assert decoded_sizes[1] == size
    assert (reduced.size_px, reduced.original_size_px) == (full.size_px, full.original_size_px)
    assert ssim(decode_stored(reduced.jpeg), decode_stored(full.jpeg)) >= 0.98


@settings(max_examples=30, deadline=None, derandomize=True)
@given(width=st.integers(1, 400), height=st.integers(1, 400), short=st.integers(1, 60))
def test_no_jpeg_is_decoded_at_less_than_twice_the_target(encode, width, height, short):
    data = encode(Image.new("L", (width, height), 90), "JPEG")
    with pytest.MonkeyPatch.context() as patch:
        loaded = []
        load = JpegImageFile.load
        patch.setattr(JpegImageFile, "load", lambda p: (loaded.append(p.size), load(p))[1])
        stored = store(data, PictureConfig(short_side_px=short))
    assert stored.original_size_px == (width, height)
    for decoded, side, whole in zip(loaded[0], stored.size_px, (width, height), strict=True):
        assert decoded >= min(2 * side, whole)


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 90), ("RGB", (255, 0, 0)), ("CMYK", (0, 255, 255, 0))]
)
def test_a_jpeg_lying_on_its_side_keeps_its_original_size_when_it_is_reduced(
    encode, decoded_sizes, mode, colour
):
    exif = Image.Exif()
    exif[0x112] = 6  # the orientation
    data = encode(Image.new(mode, (640, 480), colour), "JPEG", exif=exif)
    stored = store(data, PictureConfig(short_side_px=30))
    assert decoded_sizes == [(80, 60)]
    assert stored.size_px == (30, 40)
    assert stored.original_size_px == (480, 640)
    shown = np.asarray(decode_stored(stored.jpeg)).astype(int)
    assert np.abs(shown - ((90, 90, 90) if mode == "L" else (255, 0, 0))).max() <= 4
