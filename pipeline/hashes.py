"""The first phase of curate: from each picture, the few columns that the plan needs."""

from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.dataset import Shard, decode_row
from pipeline.pictures import pixel_digest
from pipeline.schemas import HASHES

_SIDE_PX = 64
"""Pictures are hashed at this side; the hash keeps the lowest quarter of its frequencies."""
_HASH_SIDE = 16
_FEWEST_STEPS = 45
"""From black to white, over all neighbours at that size; with fewer a picture is too flat for its
hash to say anything."""


def hash_shard(shard: Shard) -> pa.Table:
    """Hash the pictures of one shard of `raw`.

    Returns:
        `schemas.HASHES`, a row a picture; `pixels` is null where the picture was taken down, and
        `phash` also where it is flat.

    Raises:
        DatasetError: a picture cannot be decoded; it is named.
    """
    table = shard.table
    original = pc.multiply(
        table.column("original_width_px").cast(pa.int64()),
        table.column("original_height_px").cast(pa.int64()),
    )
    shown = [
        _hash_picture(decode_row(shard, row)) if live else {}
        for row, live in enumerate(shard.live.to_pylist())
    ]
    return pa.table(
        {
            "uid": table.column("uid"),
            "pixels": [its.get("pixels") for its in shown],
            "stored_bytes": pc.fill_null(pc.binary_length(table.column("picture")), 0),
            "original_pixels": pc.fill_null(original, 0),
            "num_captions": pc.fill_null(pc.list_value_length(table.column("captions")), 0),
            "phash": [its.get("phash") for its in shown],
            "colours": [its.get("colours") for its in shown],
        },
        schema=HASHES,
    )


def perceptual_hash(picture: Image.Image) -> bytes | None:
    """256 bits: which of an RGB picture's 16 x 16 lowest frequencies (of a cosine transform of its
    brightness) are over their median. None where it is too flat to have any."""
    small = picture.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC).convert("L")
    brightness = np.asarray(small, np.float64) / 255
    steps = sum(np.abs(np.diff(brightness, axis=axis)).sum() for axis in (0, 1))
    if steps < _FEWEST_STEPS:
        return None
    found = imagehash.phash(small, _HASH_SIDE, highfreq_factor=_SIDE_PX // _HASH_SIDE)
    return np.packbits(found.hash).tobytes()


def coarse_colours(picture: Image.Image) -> bytes:
    """The means of 4 x 4 cells of an RGB picture, three bytes each, row by row."""
    return picture.resize((4, 4), Image.Resampling.BOX).tobytes()


def _hash_picture(picture: Image.Image) -> dict[str, Any]:
    return {
        "pixels": pixel_digest(picture),
        "phash": perceptual_hash(picture),
        "colours": coarse_colours(picture),
    }
