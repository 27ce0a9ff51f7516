"""Whatever arrives becomes an upright, opaque sRGB JPEG of bounded size, or a fault with a word."""

import hashlib
import io
import random
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from pipeline.colours import in_channels
from pipeline.errors import ConfigError
from pipeline.pictures import (
    PictureConfig,
    PictureFault,
    StoredPicture,
    decode_stored,
    pixel_digest,
    read_picture,
    store,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x112
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"****").replace(b"gXYZ", b"rXYZ").replace(b"****", b"gXYZ")
"""A valid RGB profile whose red primary is sRGB's green, and the other way round."""


def flat(mode: str, colour, size=(16, 12)) -> Image.Image:
    return Image.new(mode, size, colour)


def pixels(stored: StoredPicture) -> np.ndarray:
    """int[H, W, 3]: the stored picture decoded."""
    picture = decode_stored(stored.jpeg)
    assert picture.size == stored.size_px
    return np.asarray(picture).astype(int)


def assert_shows(stored: StoredPicture, colour) -> None:
    """All pixels are of one colour, but for what JPEG rounds."""
    error = int(np.abs(pixels(stored) - np.array(colour)).max())
    assert error <= 4


def fault(data: bytes, config: PictureConfig | None = None) -> str:
    with pytest.raises(PictureFault) as caught:
        store(data, config or PictureConfig())
    return str(caught.value)


def picture_or_fault(data: bytes, **options) -> StoredPicture | str:
    try:
        return store(data, PictureConfig(**options))
    except PictureFault as caught:
        return str(caught)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = b""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        chunks += struct.pack(">I", len(body)) + kind + body + crc
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("MPO", {"quality": 95, "save_all": True, "append_images": [flat("RGB", RED)]}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("GIF", {"save_all": True, "append_images": [flat("RGB", RED)]}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_the_formats_of_the_web_are_accepted(encode, file_format, options):
    data = encode(flat("RGB", (40, 160, 200)), file_format, **options)
    stored = store(data, PictureConfig())
    assert stored.jpeg.startswith(b"\xff\xd8\xff")
    assert stored.size_px == stored.original_size_px == (16, 12)
    assert_shows(stored, (40, 160, 200))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>Not found</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
        b'{"error": 1}',
        b"\xff\xd8",
        bytes(1000),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data):
    assert fault(data) == "failed:not_a_picture"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_in_the_middle_is_truncated(encode, noise, file_format):
    data = encode(noise(0, 64, 48), file_format)
    assert fault(data[: len(data) * 2 // 3]) == "failed:truncated"


@pytest.mark.parametrize("file_format", ["WEBP", "AVIF"])
def test_a_picture_cut_in_the_middle_is_a_fault_in_formats_that_do_not_tell(
    encode, noise, file_format
):
    data = encode(noise(0, 64, 48), file_format)
    assert fault(data[: len(data) * 2 // 3]).startswith("failed:")


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The bytes with a few of them changed, or cut off."""
    if dice.random() < 0.2:
        return data[: dice.randrange(len(data))]
    bent = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        bent[dice.randrange(min(len(bent), dice.choice([60, 400, len(bent)])))] = dice.randrange(
            256
        )
    return bytes(bent)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_damaged_picture_is_stored_or_a_fault_and_nothing_else(encode, noise, file_format):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if file_format in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    whole = encode(noise(1, 31, 24), file_format, **options)
    dice = random.Random(f"damaged {file_format}")
    outcomes = set()
    for _ in range(300):
        try:
            store(damaged(whole, dice), PictureConfig(max_decoded_px=100_000))
            outcomes.add("stored")
        except PictureFault as reason:
            outcomes.add(str(reason).partition(":")[0])
    assert {"stored", "failed"} <= outcomes <= {"stored", "failed", "dropped"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_its_exif_says(encode, orientation):
    upright = Image.new("RGB", (48, 32), WHITE)
    upright.paste(RED, (0, 0, 24, 16))  # top left
    upright.paste(BLUE, (24, 0, 48, 16))  # top right
    turned = {  # how a camera held so lays the pixels out: the inverse of what a viewer must do
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lying = upright if turned is None else upright.transpose(turned)
    stored = store(encode(lying, "PNG", exif=exif), PictureConfig())
    assert stored.size_px == stored.original_size_px == (48, 32)
    corners = [pixels(stored)[y, x] for x, y in ((4, 4), (44, 4), (4, 28), (44, 28))]
    assert np.abs(np.array(corners) - np.array([RED, BLUE, WHITE, WHITE])).max() <= 4
    assert not Image.open(io.BytesIO(stored.jpeg)).getexif()  # or a reader would turn it again


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        (0x100, 2),  # ImageWidth as text
        (0x11A, 2),  # XResolution as text
        (0x132, 12),  # DateTime as a float
    ],
)
def test_odd_exif_beside_the_orientation_does_not_lose_the_picture(encode, tag, kind):
    entries = [(ORIENTATION, 3, 1, struct.pack("<HH", 6, 0)), (tag, kind, 1, bytes(4))]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    for number, kind_, count, value in sorted(entries):
        exif += struct.pack("<HHI", number, kind_, count) + value
    data = encode(flat("RGB", GREEN, (16, 12)), "JPEG", exif=exif + bytes(4))
    stored = store(data, PictureConfig())
    assert stored.size_px == stored.original_size_px == (12, 16)


def on_white(colour, alpha: int) -> np.ndarray:
    return np.array([(c * alpha + 255 * (255 - alpha)) / 255 for c in colour])


@pytest.mark.parametrize("alpha", [0, 100, 255])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_a_transparent_picture_is_laid_on_white(encode, file_format, alpha):
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = encode(flat("RGBA", (200, 40, 0, alpha)), file_format, **options)
    assert_shows(store(data, PictureConfig()), on_white((200, 40, 0), alpha))


def test_transparent_grey_is_laid_on_white(encode):
    data = encode(flat("LA", (60, 51)), "PNG")
    assert_shows(store(data, PictureConfig()), on_white((60, 60, 60), 51))


@pytest.mark.parametrize(
    ("mode", "colour", "transparent"),
    [("P", 3, 3), ("RGB", RED, RED), ("L", 7, 7), ("1", 0, 0)],
)
@pytest.mark.parametrize("profile", [None, SRGB])
def test_a_colour_that_stands_for_transparent_becomes_white(
    encode, mode, colour, transparent, profile
):
    picture = flat(mode, colour)
    if mode == "P":
        picture.putpalette([10, 20, 30] * 8)
    data = encode(picture, "PNG", transparency=transparent, icc_profile=profile)
    assert_shows(store(data, PictureConfig()), WHITE)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP"])
def test_a_palette_becomes_its_colours(encode, file_format):
    picture = flat("P", 1)
    picture.putpalette([0, 0, 0, 30, 90, 200])
    assert_shows(store(encode(picture, file_format), PictureConfig()), (30, 90, 200))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(encode, file_format, byte_order):
    values = np.linspace(0, 65535, 256, dtype=np.uint16).repeat(16).reshape(256, 16)
    picture = Image.fromarray(values.astype(byte_order))
    stored = pixels(store(encode(picture, file_format), PictureConfig(jpeg_quality=100)))
    assert np.abs(stored - (values / 257.0)[:, :, None]).max() <= 2


def test_dark_grey_of_16_bits_stays_dark(encode):
    dark = Image.fromarray(np.full((12, 16), 255, np.uint16))  # 255 of 65535
    assert_shows(store(encode(dark, "PNG"), PictureConfig()), (1, 1, 1))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE), ((0, 0, 0, 0), WHITE)],
)
def test_a_cmyk_jpeg_has_its_colours(encode, ink, colour):
    data = encode(flat("CMYK", ink), "JPEG", quality=95)
    assert_shows(store(data, PictureConfig()), colour)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_are_converted_by_the_embedded_profile(encode, file_format):
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
    picture = flat("RGB", RED)
    data = encode(picture, file_format, icc_profile=SWAPPED, **options[file_format])
    assert_shows(store(data, PictureConfig()), GREEN)
    data = encode(picture, file_format, icc_profile=SRGB, **options[file_format])
    assert_shows(store(data, PictureConfig()), RED)


def test_a_profile_leaves_transparency_as_it_is(encode):
    data = encode(flat("RGBA", (*RED, 102)), "PNG", icc_profile=SWAPPED)
    assert_shows(store(data, PictureConfig()), on_white(GREEN, 102))


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        b"no profile",
        SRGB[:200],
    ],
    ids=["of another space", "garbage", "truncated"],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_unfit_profile_is_passed_over(encode, mode, profile):
    picture = flat("RGB", RED).convert(mode)
    plain = store(encode(picture, "PNG"), PictureConfig())
    assert store(encode(picture, "PNG", icc_profile=profile), PictureConfig()) == plain


@settings(max_examples=60, deadline=None, derandomize=True)
@given(width=st.integers(1, 150), height=st.integers(1, 150), short=st.integers(1, 60))
def test_the_short_side_is_reduced_the_ratio_kept_and_nothing_enlarged(
    encode, width, height, short
):
    data = encode(flat("RGB", BLUE, (width, height)), "BMP")
    stored = store(data, PictureConfig(short_side_px=short))
    assert stored.original_size_px == (width, height)
    if min(width, height) <= short:
        assert stored.size_px == (width, height)
        return
    assert min(stored.size_px) == short
    for side, original in zip(stored.size_px, (width, height), strict=True):
        exact = Fraction(original * short, min(width, height))
        assert abs(side - exact) <= Fraction(1, 2)
    assert_shows(stored, BLUE)


def test_a_reduced_picture_shows_the_means_of_its_parts(encode, noise):
    original = noise(2, 256, 192)
    stored = store(encode(original, "PNG"), PictureConfig(short_side_px=24))
    means = np.asarray(original, float).reshape(24, 8, 32, 8, 3).mean(axis=(1, 3))
    # Bicubic is no box: alike, with noise of +-74 become one of some +-12.
    assert np.abs(pixels(stored) - means).mean() < 8


def test_what_is_transparent_does_not_bleed_into_a_reduced_picture(encode):
    board = np.zeros((96, 96, 4), np.uint8)  # transparent black
    board[np.indices((96, 96)).sum(axis=0) % 2 == 0] = (*RED, 255)
    data = encode(Image.fromarray(board), "PNG")
    stored = pixels(store(data, PictureConfig(short_side_px=12)))
    error = np.abs(stored[2:-2, 2:-2] - on_white(RED, 127)).max()
    assert error <= 6


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (10_001, 10_000)])
def test_a_header_that_claims_too_many_pixels_is_not_decoded(size):
    assert fault(png_header(*size)) == "dropped:too_many_pixels"


def test_the_bound_on_pixels_is_exact(encode):
    data = encode(flat("RGB", RED, (20, 10)), "PNG")
    assert store(data, PictureConfig(max_decoded_px=200)).size_px == (20, 10)
    assert fault(data, PictureConfig(max_decoded_px=199)) == "dropped:too_many_pixels"


def test_the_configured_bound_on_pixels_is_the_only_one(encode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow refuses from twice this on
    data = encode(flat("RGB", RED, (20, 10)), "PNG")
    assert store(data, PictureConfig(max_decoded_px=200)).size_px == (20, 10)


def test_a_picture_that_stays_too_large_is_dropped(encode, noise):
    data = encode(noise(3, 64, 64), "PNG")
    size = len(store(data, PictureConfig()).jpeg)
    assert len(store(data, PictureConfig(max_stored_bytes=size)).jpeg) == size
    assert fault(data, PictureConfig(max_stored_bytes=size - 1)) == "dropped:too_large_stored"


def test_a_picture_longer_than_a_jpeg_can_be_is_a_fault(encode):
    data = encode(flat("L", 9, (65_501, 1)), "PNG")
    assert fault(data).startswith(("failed:", "dropped:"))
    assert store(encode(flat("L", 9, (65_500, 1)), "PNG"), PictureConfig()).size_px == (65_500, 1)


@pytest.mark.parametrize("comment", [b"taken by N. N.", b"x" * 70_000])
def test_nothing_but_its_pixels_is_stored_of_a_picture(encode, comment):
    picture = flat("P", 1)
    picture.putpalette([0, 0, 0, 30, 90, 200])
    plain = store(encode(picture, "GIF"), PictureConfig())
    assert store(encode(picture, "GIF", comment=comment), PictureConfig()) == plain
    text = PngInfo()
    text.add_text("comment", comment.decode())
    assert store(encode(picture, "PNG", pnginfo=text), PictureConfig()) == plain


def test_equal_bytes_are_stored_as_equal_bytes(encode, noise):
    data = encode(noise(4, 300, 400), "WEBP")
    assert store(data, PictureConfig()) == store(data, PictureConfig())


def test_a_lower_quality_gives_fewer_bytes(encode, noise):
    data = encode(noise(5), "PNG")
    low, high = (store(data, PictureConfig(jpeg_quality=quality)).jpeg for quality in (20, 95))
    assert len(low) < len(high)


@pytest.mark.parametrize(
    "wrong",
    [
        {"jpeg_quality": 0},
        {"jpeg_quality": 101},
        {"short_side_px": 0},
        {"max_decoded_px": 0},
        {"max_stored_bytes": -1},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_its_value(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name}: {value} is not"):
        PictureConfig(**wrong)


def test_a_stored_picture_decodes_to_rgb_and_a_damaged_one_is_an_error(encode, noise):
    assert decode_stored(encode(flat("L", 9), "JPEG")).mode == "RGB"
    jpeg = encode(noise(6), "JPEG")
    for data in (b"", b"no picture", jpeg[: len(jpeg) // 2], encode(noise(6), "PNG")):
        with pytest.raises(OSError, match=r"\w"):
            decode_stored(data)


def test_the_pixel_digest_covers_the_pixels_and_the_shape(noise):
    picture = noise(7, 6, 4)
    content = struct.pack("<II", 6, 4) + bytes(v for p in picture.get_flattened_data() for v in p)
    assert pixel_digest(picture) == hashlib.sha256(content).digest()[:16]
    digests = {pixel_digest(p) for p in (picture, flat("RGB", RED, (6, 4)))}
    digests |= {pixel_digest(flat("RGB", RED, size)) for size in ((4, 6), (24, 1), (1, 24))}
    assert len(digests) == 5
    other = picture.copy()
    other.putpixel((5, 3), (0, 0, 0))
    assert pixel_digest(other) != pixel_digest(picture)
    assert pixel_digest(picture.copy()) == pixel_digest(picture)


def test_a_file_of_the_users_is_read_as_its_stored_row_shows_it(tmp_path, encode, noise):
    data = encode(noise(0, 400, 300).convert("RGBA"), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    config = PictureConfig(short_side_px=100)
    picture = read_picture(str(tmp_path / "a.png"), config)
    assert picture.mode == "RGB"
    assert picture.size == (133, 100)
    assert pixel_digest(picture) == pixel_digest(decode_stored(store(data, config).jpeg))


def test_a_file_that_is_no_picture_is_the_users_to_mend(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for name, reason in (
        ("a.txt", r"a\.txt: cannot be used as a picture \(failed:not_a_picture\)"),
        ("b.jpg", r"b\.jpg: cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_picture(str(tmp_path / name), PictureConfig())


def frames(*colours) -> dict:
    """Options to save a picture as the first frame of several."""
    return {"save_all": True, "append_images": [flat("RGB", colour) for colour in colours]}


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_the_first_frame_of_an_animation_is_stored_and_the_picture_said_to_be_one(
    encode, file_format
):
    still = store(encode(flat("RGB", GREEN), file_format, quality=100), PictureConfig())
    assert not still.animated
    moving = encode(flat("RGB", GREEN), file_format, quality=100, **frames(RED, BLUE))
    stored = store(moving, PictureConfig())
    assert stored.animated
    assert_shows(stored, pixels(still)[0, 0])


@pytest.mark.parametrize("file_format", ["TIFF", "MPO"])
def test_further_pages_and_views_are_no_animation(encode, file_format):
    stored = store(encode(flat("RGB", GREEN), file_format, **frames(RED)), PictureConfig())
    assert not stored.animated


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_an_animation_whose_later_frames_are_cut_off_is_one_or_a_fault(encode, noise, share):
    data = encode(noise(0, 64, 48), "GIF", save_all=True, append_images=[noise(1, 64, 48)])
    came = picture_or_fault(data[: int(len(data) * share)])
    assert came in ("failed:truncated", "failed:decode") or came.size_px == (64, 48)


def test_the_range_of_colours_is_the_largest_difference_in_a_channel(encode):
    assert store(encode(flat("RGB", BLUE), "PNG"), PictureConfig()).colour_range <= 2
    two = flat("RGB", (100, 100, 100), (32, 16))
    two.paste((110, 100, 180), (0, 0, 16, 16))
    assert abs(store(encode(two, "PNG"), PictureConfig()).colour_range - 80) <= 4
    hidden = flat("RGBA", (*RED, 0), (32, 16))
    hidden.paste((*BLUE, 0), (0, 0, 16, 16))  # as it is seen, on white, it is of one colour
    assert store(encode(hidden, "PNG"), PictureConfig()).colour_range == 0


def png_of_16_bits(colour: int, channels: list[int], size=(16, 12)) -> bytes:
    """A PNG with 16 bits a channel, which Pillow reads but does not write."""
    row = b"\0" + struct.pack(f">{len(channels)}H", *channels) * size[0]
    header = struct.pack(">IIBBBBB", *size, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * size[1])), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_colours_of_16_bits_are_scaled():
    data = png_of_16_bits(2, [40 * 257, 160 * 257, 200 * 257])
    assert_shows(store(data, PictureConfig()), (40, 160, 200))
    data = png_of_16_bits(6, [200 * 257, 40 * 257, 0, 100 * 257])
    assert_shows(store(data, PictureConfig()), on_white((200, 40, 0), 100))


def test_every_grey_of_16_bits_becomes_the_nearest_of_8():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    eight = np.asarray(in_channels(Image.fromarray(values))).astype(int)
    assert (eight == np.floor(values / 257 + 0.5)).all()


def test_a_profile_is_applied_to_grey_with_transparency(encode):
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(flat("LA", (60, 51)), "PNG", icc_profile=grey)
    assert_shows(store(data, PictureConfig()), on_white((60, 60, 60), 51))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_no_exif_however_odd_loses_a_picture(encode, exif):
    data = encode(flat("RGB", GREEN), "JPEG", exif=b"Exif\0\0" + exif)
    assert_shows(store(data, PictureConfig()), GREEN)


@pytest.fixture(scope="module")
def some_of_each(encode, noise):
    picture = noise(9, 40, 30)
    formats = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF")
    return [encode(picture, file_format) for file_format in formats]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    which=st.integers(0, 6),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    end=st.floats(0, 1.5),
)
def test_bytes_however_damaged_are_a_picture_or_a_fault_with_a_word(
    some_of_each, which, places, end
):
    data = bytearray(some_of_each[which])
    for place, value in places:
        data[int(place * (len(data) - 1))] = value
    came = picture_or_fault(bytes(data[: int(end * len(data))]), max_decoded_px=10**6)
    if isinstance(came, str):
        assert came.split(":")[0] in ("failed", "dropped")
    else:
        assert decode_stored(came.jpeg).size == came.size_px
