"""Colours: whatever a file's pixels are, as opaque 8-bit sRGB."""

import io
from typing import cast

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def in_channels(picture: Image.Image) -> Image.Image:
    """The picture in 8-bit channels that may be averaged: no palette, no colour that stands for
    transparent, no 1, 16 or 32 bits. The space stays what it is, grey or CMYK too."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _eight_bits(picture)
    if picture.mode in ("1", "P", "PA") or "transparency" in picture.info:
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB or RGBA in sRGB.

    Args:
        picture: as `in_channels` gives it.
        profile: the ICC profile that came with it; a damaged or unfit one is passed over.
    """
    if profile:
        picture = _from_profile(picture, profile)
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def opaque(picture: Image.Image) -> Image.Image:
    """RGB, composited on white where it was transparent."""
    if picture.mode != "RGBA":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits; Pillow's own conversion clips instead of scaling."""
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        wide = values.astype(np.uint32)  # in place from here: it may be 100 million pixels
        wide += 128
        wide //= 257  # v * 255 / 65535, rounded
        return Image.fromarray(wide.astype(np.uint8))
    _, largest = cast(tuple[float, float], picture.getextrema())
    # The files do not say which range they use.
    top = next((top for top in (1.0, 255.0, 65535.0) if largest <= top), largest)
    return picture.point(lambda value: value * (255.0 / top) + 0.5).convert("L")  # which clips


def _from_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    colours = picture.convert("L" if picture.mode == "LA" else "RGB") if alpha else picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture
    if converted is None:
        return picture
    if alpha:
        converted.putalpha(alpha)
    return converted
