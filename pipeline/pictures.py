"""Pictures: from the bytes that arrived to an upright, opaque sRGB JPEG of bounded size."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.colours import in_channels, opaque, to_srgb
from pipeline.errors import ConfigError
from pipeline.picture_bounds import beyond, is_cut_short

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_LONGEST_JPEG_PX = 65_500
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations to what undoes them."""
_ON_SIDE = (5, 6, 7, 8)
_SIDES_KEPT = 2
"""A JPEG is decoded at no less than so many times the sides that it is stored at."""
_ANIMATING = ("GIF", "PNG", "WEBP", "AVIF")
"""Formats whose further frames are an animation; in the others they are pages or views."""


class PictureFault(Exception):
    """Why a picture cannot be used; its text is the reason, as the ledger counts it."""


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How pictures are stored."""

    short_side_px: int = 256
    """Shorter side of a stored picture at most, in pixels; the ratio is kept, nothing is
    enlarged."""

    jpeg_quality: int = 95
    """Quality of the stored JPEG, 1 to 100."""

    max_decoded_px: int = 100_000_000
    """Largest picture decoded, in pixels (width times height), by its header; of WebP and AVIF half
    as many, for their decoders hold more at once."""

    max_stored_bytes: int = 4 << 20
    """Largest stored picture, in bytes; bounds the size of a shard."""

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality: {self.jpeg_quality} is not between 1 and 100")
        for name in ("short_side_px", "max_decoded_px", "max_stored_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")


@dataclass(frozen=True)
class StoredPicture:
    """A picture as it is stored."""

    jpeg: bytes
    size_px: tuple[int, int]
    """Width and height."""
    original_size_px: tuple[int, int]
    """Width and height upright, as it arrived."""
    animated: bool
    """Whether it was the first of an animation's frames."""
    colour_range: int
    """The largest difference between two of its pixels in a channel, 0 to 255."""


def store(data: bytes, config: PictureConfig) -> StoredPicture:
    """Decode a picture and make it what datasets hold; of several frames the first.

    Args:
        data: the bytes of a picture file.
        config: see there.

    Raises:
        PictureFault: `failed:not_a_picture`, `failed:truncated`, `failed:decode`,
            `dropped:too_many_pixels`, `dropped:too_many_scans`, `dropped:too_long` or
            `dropped:too_large_stored`.
    """
    decoded = _decode(data, config)
    picture = decoded.picture
    if max(picture.size) > _LONGEST_JPEG_PX:
        raise PictureFault("dropped:too_long")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=config.jpeg_quality)
    if buffer.tell() > config.max_stored_bytes:
        raise PictureFault("dropped:too_large_stored")
    ranges = cast(tuple[tuple[int, int], ...], picture.getextrema())
    return StoredPicture(
        jpeg=buffer.getvalue(),
        size_px=picture.size,
        original_size_px=decoded.original_size_px,
        animated=decoded.animated,
        colour_range=max(high - low for low, high in ranges),
    )


def decode_stored(jpeg: bytes) -> Image.Image:
    """A stored picture as RGB.

    Raises:
        OSError: it cannot be decoded, which a stored picture always can.
    """
    return Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB")


def read_picture(path: str, config: PictureConfig) -> Image.Image:
    """A picture file of the user's as RGB, just as its stored row would show it.

    Raises:
        ConfigError: it cannot be read, or ingest would not take it.
    """
    try:
        data = Path(path).expanduser().read_bytes()
        return decode_stored(store(data, config).jpeg)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except PictureFault as fault:
        raise ConfigError(f"{path}: cannot be used as a picture ({fault})") from None


def pixel_digest(picture: Image.Image) -> bytes:
    """The first 16 bytes of SHA-256 over width, height (32 bits each) and the RGB pixels."""
    sha = hashlib.sha256(np.array(picture.size, dtype="<u4").tobytes())
    sha.update(np.asarray(picture).data)
    return sha.digest()[:16]


@dataclass(frozen=True)
class _Decoded:
    picture: Image.Image
    """Reduced, upright, RGB in sRGB, nothing beside its pixels."""
    original_size_px: tuple[int, int]
    animated: bool


def _decode(data: bytes, config: PictureConfig) -> _Decoded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            Image.MAX_IMAGE_PIXELS = None  # ours counts, not Pillow's own bound
            with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
                if reason := beyond(file, data, config.max_decoded_px):
                    raise PictureFault(reason)
                return _finished(file, config.short_side_px)
    except PictureFault:
        raise
    except Exception as error:  # decoders raise anything on bytes made to hurt them
        raise PictureFault(f"failed:{_kind(error, data)}") from error


def _kind(error: Exception, data: bytes) -> str:
    """One word for what a decoder raised."""
    if "truncated" in str(error).lower() or is_cut_short(data):
        return "truncated"
    return "not_a_picture" if isinstance(error, UnidentifiedImageError) else "decode"


def _finished(file: ImageFile.ImageFile, short_side_px: int) -> _Decoded:
    """Decode an opened file. Reduced as early as can be: what follows works on few pixels."""
    width, height = file.size
    size = _stored_size(file.size, short_side_px)
    box = None
    if size != file.size:  # a JPEG may leave out what the reduction would; for others no effect
        draft = file.draft(None, (size[0] * _SIDES_KEPT, size[1] * _SIDES_KEPT))
        box = draft and draft[1]  # sides that do not divide are rounded up, and show less than 1 px
    file.load()
    orientation = file.getexif().get(_ORIENTATION, 1)
    picture = in_channels(file)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=2.0)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    picture = opaque(to_srgb(picture, file.info.get("icc_profile")))
    picture.info = {}  # comments and the like would come along
    return _Decoded(
        picture,
        (height, width) if orientation in _ON_SIDE else (width, height),
        file.format in _ANIMATING and getattr(file, "is_animated", False),
    )


def _stored_size(size_px: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    scale = short_side_px / min(size_px)
    if scale >= 1:
        return size_px
    width, height = (max(1, round(side * scale)) for side in size_px)
    return width, height
