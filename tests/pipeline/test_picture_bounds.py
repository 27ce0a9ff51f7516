"""What asks for hours or gigabytes in a few bytes is dropped by its headers."""

import io
import struct
import subprocess
import sys

import pytest
from PIL import Image

from pipeline.picture_bounds import is_cut_short, num_scans
from pipeline.pictures import PictureConfig, PictureFault, store


def outcome(data: bytes, **options) -> str:
    try:
        store(data, PictureConfig(**options))
    except PictureFault as fault:
        return str(fault)
    return "kept"


@pytest.fixture
def with_scans(encode, noise):
    """A progressive JPEG of 32 x 32 pixels of so many scans; the last ones refine nothing."""
    whole = encode(noise(0, 32, 32), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    written = whole.count(b"\xff\xda")

    def with_scans(count: int) -> bytes:
        return whole[:-2] + last * (count - written) + b"\xff\xd9"

    return with_scans


def test_a_jpeg_of_many_passes_over_many_pixels_is_not_decoded(with_scans):
    assert outcome(with_scans(10), max_decoded_px=1024) == "kept"
    assert outcome(with_scans(20), max_decoded_px=1024) == "kept"
    assert outcome(with_scans(21), max_decoded_px=1024) == "dropped:too_many_scans"
    assert outcome(with_scans(41), max_decoded_px=2048) == "dropped:too_many_scans"
    assert outcome(with_scans(100)) == "kept"  # so small a picture may have them


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def test_only_a_jpegs_own_scans_count(encode, noise, with_scans):
    plain = encode(noise(0, 32, 32), "JPEG")
    assert num_scans(plain) == 1
    assert num_scans(with_scans(21)) == 21
    thumbnail = segment(0xE1, b"Exif\0\0" + with_scans(30))
    both = plain[:2] + thumbnail + plain[2:] + with_scans(30)  # what follows its end is not read
    assert num_scans(both) == 1
    assert outcome(both, max_decoded_px=1024) == "kept"
    padded = plain[:2] + b"\xff\xff\xff" + plain[2:]
    assert num_scans(padded) == 1
    cut = with_scans(30)[:-2]
    assert num_scans(cut) == 30
    assert num_scans(b"\xff\xd8\xff\xda") == 1


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey TIFF of one tile that has no content."""
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8), (325, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + bytes(side * side)


def test_a_tiff_is_as_large_as_its_tiles():
    assert outcome(tiled_tiff(64, 24_000)) == "dropped:too_many_pixels"
    assert outcome(tiled_tiff(64, 64)) == "kept"


@pytest.mark.parametrize(("file_format", "most"), [("WEBP", 3000), ("AVIF", 3000), ("PNG", 1500)])
def test_a_decoder_that_copies_gets_half_as_many_pixels(encode, noise, file_format, most):
    data = encode(noise(0, 50, 30), file_format)
    assert outcome(data, max_decoded_px=most) == "kept"
    assert outcome(data, max_decoded_px=most - 1) == "dropped:too_many_pixels"


@pytest.mark.parametrize("file_format", ["WEBP", "AVIF"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_what_is_cut_short_is_truncated(encode, noise, file_format, share):
    whole = encode(noise(0, 64, 48), file_format)
    assert not is_cut_short(whole)
    assert outcome(whole[: max(40, int(len(whole) * share))]) == "failed:truncated"


def test_what_is_damaged_and_not_cut_short_is_not_truncated(encode, noise):
    whole = bytearray(encode(noise(0, 64, 48), "WEBP"))
    whole[16:200] = bytes(184)
    assert outcome(bytes(whole)) in ("failed:decode", "failed:not_a_picture")


_PEAK = """
import sys
from pathlib import Path
from pipeline.pictures import PictureConfig, store
store(sys.stdin.buffer.read(), PictureConfig())
status = Path("/proc/self/status").read_text()  # rusage counts what the parent had, too
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "side", "file_format", "options"),
    [
        ("F", 9990, "TIFF", {"compression": "tiff_deflate"}),
        ("I", 9990, "TIFF", {"compression": "tiff_deflate"}),
        ("RGBA", 9990, "PNG", {}),
        ("RGB", 7070, "WEBP", {"lossless": True, "method": 0}),
        ("RGB", 9990, "JPEG", {"progressive": True}),
    ],
)
def test_the_largest_pictures_are_decoded_in_little_memory(mode, side, file_format, options):
    buffer = io.BytesIO()
    picture = Image.new(mode, (side, side), 7)
    picture.save(buffer, file_format, **options)
    run = subprocess.run(
        [sys.executable, "-c", _PEAK], input=buffer.getvalue(), capture_output=True, check=True
    )
    assert int(run.stdout) < 1200  # MB, of the 1,500 that a worker may have
