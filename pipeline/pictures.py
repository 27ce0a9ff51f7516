"""Pictures: from the bytes that arrived to an upright, opaque sRGB JPEG of bounded size."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from pipeline.errors import ConfigError

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
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


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
    """Largest picture decoded, in pixels (width times height), by its header."""

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


def store(data: bytes, config: PictureConfig) -> StoredPicture:
    """Decode a picture and make it what datasets hold.

    Args:
        data: the bytes of a picture file.
        config: see there.

    Raises:
        PictureFault: `failed:not_a_picture`, `failed:truncated`, `failed:decode`,
            `dropped:too_many_pixels`, `dropped:too_long` or `dropped:too_large_stored`.
    """
    picture = _decode(data, config.max_decoded_px)
    original = picture.size
    # Reduced before it is composited: Pillow resizes premultiplied, so the result is the same,
    # at a third of the memory for a large transparent picture.
    picture = _opaque(_reduced(picture, config.short_side_px))
    if max(picture.size) > _LONGEST_JPEG_PX:
        raise PictureFault("dropped:too_long")
    picture.info = {}  # comments and the like would come along
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=config.jpeg_quality)
    if buffer.tell() > config.max_stored_bytes:
        raise PictureFault("dropped:too_large_stored")
    return StoredPicture(buffer.getvalue(), picture.size, original)


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


def _decode(data: bytes, max_px: int) -> Image.Image:
    """An upright picture in sRGB, RGB or RGBA."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            Image.MAX_IMAGE_PIXELS = None  # ours counts, not Pillow's own bound
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
            if picture.width * picture.height > max_px:
                raise PictureFault("dropped:too_many_pixels")
            picture.load()
            return _to_srgb(_upright(picture))
    except PictureFault:
        raise
    except UnidentifiedImageError:
        raise PictureFault("failed:not_a_picture") from None
    except Exception as error:  # decoders raise anything on bytes made to hurt them
        kind = "truncated" if "truncated" in str(error).lower() else "decode"
        raise PictureFault(f"failed:{kind}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; whatever else stands there does not matter."""
    turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def _to_srgb(picture: Image.Image) -> Image.Image:
    """RGB or RGBA in sRGB, from any mode that Pillow decodes."""
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    transparent = picture.has_transparency_data
    profile = picture.info.get("icc_profile")
    if transparent or picture.mode in ("P", "1"):
        picture = picture.convert("RGBA" if transparent else "RGB")
    if profile:
        picture = _from_profile(picture, profile)
    return picture.convert("RGBA" if transparent else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(picture, dtype=np.float32)
    largest = values.max(initial=0)
    if picture.mode.startswith("I;16"):
        top = 65535.0
    else:  # 32 bits or floats: the files do not say which range they use
        top = next((top for top in (1.0, 255.0, 65535.0) if largest <= top), largest)
    return Image.fromarray((values.clip(0, top) * (255.0 / top) + 0.5).astype(np.uint8))


def _from_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    """Convert colours by an embedded ICC profile; a damaged or unfit one is passed over."""
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    colours = picture.convert("RGB") if alpha else picture
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


def _opaque(picture: Image.Image) -> Image.Image:
    """RGB, composited on white where it was transparent."""
    if picture.mode != "RGBA":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _reduced(picture: Image.Image, short_side_px: int) -> Image.Image:
    scale = short_side_px / min(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
