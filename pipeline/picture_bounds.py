"""Bounds: what decoding a picture would take, as its headers say, before any of it is decoded.

Few bytes can ask for hours or gigabytes without many pixels: a JPEG of a thousand passes over the
same pixels, a TIFF of 64 x 64 in one tile of 2 GB. All figures are of Pillow 12 at 100 million
pixels.
"""

import re

from PIL import ImageFile

_SCANS = 20
"""Passes over a JPEG of as many pixels as are decoded at most (0.24 s each), and more over a
smaller one. Encoders write 10, of four inks 18."""

_COPIED = ("WEBP", "AVIF")
"""Formats whose decoders hold several copies of all pixels: 1.6 GB. Of them half as many pixels
are decoded."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""In a JPEG's entropy-coded bytes 0xff is followed by a zero or is a restart."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = (0x01, 0xD8, _END_OF_IMAGE)
"""Markers that no length follows."""


def beyond(file: ImageFile.ImageFile, data: bytes, max_px: int) -> str | None:
    """The reason why a picture may not be decoded, or None.

    Args:
        file: opened, not decoded.
        data: its bytes.
        max_px: pixels at most.
    """
    pixels = file.width * file.height
    if file.format == "TIFF":
        tags = file.tag_v2  # type: ignore[attr-defined]
        sides = (tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0))
        pixels = max(pixels, sides[0] * sides[1])
    if pixels * (2 if file.format in _COPIED else 1) > max_px:
        return "dropped:too_many_pixels"
    if data.startswith(b"\xff\xd8"):  # its scans are at least as many by this, which is quick
        scans = data.count(b"\xff\xda")
        if scans * pixels > _SCANS * max_px and num_scans(data) * pixels > _SCANS * max_px:
            return "dropped:too_many_scans"
    return None


def num_scans(jpeg: bytes) -> int:
    """Passes over its pixels that a JPEG describes; pictures within its metadata do not count."""
    scans = place = 0
    while found := _MARKER.search(jpeg, place):
        marker = jpeg[found.start(1)]
        place = found.end()
        if marker == _END_OF_IMAGE:
            break
        if marker not in _ALONE:
            place += int.from_bytes(jpeg[place : place + 2], "big")
        scans += marker == _START_OF_SCAN
    return scans


def is_cut_short(data: bytes) -> bool:
    """Whether a WebP or an AVIF ends before it says that it does; their decoders do not tell."""
    if data[:4] == b"RIFF":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[4:8] != b"ftyp":
        return False
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8:  # the last box, or one of more than 4 GB
            return False
        place += size
    return place > len(data)
