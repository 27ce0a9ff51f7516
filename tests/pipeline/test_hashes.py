"""The plan sees of each picture what its row and its pixels say."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.captions import web_caption
from pipeline.erasure import without_payload
from pipeline.errors import DatasetError
from pipeline.hashes import coarse_colours, hash_shard, perceptual_hash
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.pictures import pixel_digest
from pipeline.plan import PlanConfig, left_out, make_plan
from pipeline.schemas import HASHES


@pytest.fixture(scope="module")
def jpegs(encode, noise):
    """Four pictures, of which the last has the pixels of the first in other bytes."""
    jpegs = [encode(noise(seed), "JPEG", quality=90) for seed in (0, 1, 2)]
    return [*jpegs, jpegs[0][:2] + b"\xff\xfe\x00\x06note" + jpegs[0][2:]]  # with a comment


def test_hashes_are_what_each_row_says(jpegs, make_shard):
    captions = [[], [web_caption("a")], [web_caption("b"), web_caption("c")], []]
    hashes = hash_shard(make_shard(jpegs, captions=captions))
    assert hashes.schema.equals(HASHES)
    pictures = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    assert hashes.to_pylist() == [
        {
            "uid": row.to_bytes(16, "big"),
            "pixels": pixel_digest(pictures[row]),
            "stored_bytes": len(jpeg),
            "original_pixels": (row + 10) * 20,
            "num_captions": len(captions[row]),
            "phash": perceptual_hash(pictures[row]),
            "colours": coarse_colours(pictures[row]),
        }
        for row, jpeg in enumerate(jpegs)
    ]


def test_equal_pixels_have_equal_hashes_whatever_the_bytes(jpegs, make_shard):
    pixels = hash_shard(make_shard(jpegs)).column("pixels").to_pylist()
    assert jpegs[0] != jpegs[3]
    assert pixels[0] == pixels[3]
    assert len(set(pixels)) == 3


def test_a_picture_taken_down_has_no_hash_and_is_not_decoded(jpegs, make_shard):
    shard = make_shard([jpegs[0], b"no picture", None, jpegs[3]], down=[1, 2])
    hashes = hash_shard(shard)
    assert [pixels is None for pixels in hashes.column("pixels").to_pylist()] == [
        False,
        True,
        True,
        False,
    ]
    plan = make_plan(hashes, np.zeros(4, int), PlanConfig(), NearDuplicateConfig())
    assert plan.column("outcome").to_pylist() == ["kept", "duplicate", "taken_down", "taken_down"]
    assert plan.column("input_row").to_pylist() == [3, 0, 1, 2]
    assert left_out(plan)[0].dropped == {"taken_down": 2}


def test_a_picture_that_was_erased_counts_as_taken_down(jpegs, make_shard):
    shard = make_shard(jpegs, down=[1], captions=[[web_caption("a")]] * 4)
    erased = without_payload(shard.table, np.array([1]), {"uid"})
    hashes = hash_shard(replace(shard, table=erased))
    assert hashes.column("num_captions").to_pylist() == [1, 0, 1, 1]
    plan = make_plan(hashes, np.zeros(4, int), PlanConfig(), NearDuplicateConfig())
    assert plan.column("outcome").to_pylist() == ["kept", "kept", "duplicate", "taken_down"]


def test_a_damaged_picture_is_named_by_file_row_and_uid(jpegs, make_shard):
    shard = make_shard([jpegs[0], jpegs[1][:200]])
    with pytest.raises(DatasetError, match=rf"00000\.arrow: row 1: picture {1:032x} cannot"):
        hash_shard(shard)


def test_an_empty_shard_has_no_hashes(make_shard):
    assert hash_shard(make_shard([])).equals(HASHES.empty_table())


def test_the_area_of_a_huge_original_does_not_overflow(jpegs, make_shard):
    shard = make_shard(jpegs[:1])
    table = shard.table
    for name in ("original_width_px", "original_height_px"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array([100_000], pa.int32()))
    hashes = hash_shard(replace(shard, table=table))
    assert hashes.column("original_pixels").to_pylist() == [10_000_000_000]


def scene(seed: int) -> Image.Image:
    """Rectangles over one another: edges at all scales."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((280, 360, 3), np.uint8)
    for _ in range(60):
        top, left = rng.integers(0, 250), rng.integers(0, 330)
        height, width = rng.integers(8, 120, 2)
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def bits_apart(one: Image.Image, other: Image.Image) -> int:
    hashes = [np.frombuffer(perceptual_hash(picture), np.uint8) for picture in (one, other)]
    return int(np.bitwise_count(hashes[0] ^ hashes[1]).sum())


def test_the_perceptual_hash_lasts_through_encoding_and_resizing_and_tells_pictures_apart(encode):
    for seed in range(8):
        picture = scene(seed)
        poor = Image.open(io.BytesIO(encode(picture, "JPEG", quality=40))).convert("RGB")
        assert bits_apart(picture, poor) <= 16
        assert bits_apart(picture, picture.resize((150, 117), Image.Resampling.BICUBIC)) <= 16
        assert bits_apart(picture, scene(seed + 100)) > 64


def test_flat_and_tiny_pictures_have_no_perceptual_hash():
    assert perceptual_hash(Image.new("RGB", (300, 200), "red")) is None
    assert perceptual_hash(Image.new("RGB", (1, 1))) is None
    assert perceptual_hash(Image.new("RGB", (3000, 1), "white")) is None


def test_coarse_colours_are_the_means_of_cells():
    pixels = np.random.default_rng(5).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    cells = pixels.reshape(4, 10, 4, 20, 3).astype(float).mean(axis=(1, 3)).reshape(-1)
    found = np.frombuffer(coarse_colours(Image.fromarray(pixels)), np.uint8)
    assert np.abs(found - cells).max() <= 1.01  # rounded twice
