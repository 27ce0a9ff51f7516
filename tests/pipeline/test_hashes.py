"""The plan sees of each picture what its row and its pixels say."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.captions import web_caption
from pipeline.errors import DatasetError
from pipeline.hashes import hash_shard
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
    assert hashes.to_pylist() == [
        {
            "uid": row.to_bytes(16, "big"),
            "pixels": pixel_digest(Image.open(io.BytesIO(jpeg)).convert("RGB")),
            "stored_bytes": len(jpeg),
            "original_pixels": (row + 10) * 20,
            "num_captions": len(captions[row]),
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
    plan = make_plan(hashes, np.zeros(4, int), PlanConfig())
    assert plan.column("outcome").to_pylist() == ["kept", "duplicate", "taken_down", "taken_down"]
    assert plan.column("input_row").to_pylist() == [3, 0, 1, 2]
    assert left_out(plan)[0].dropped == {"taken_down": 2}


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
