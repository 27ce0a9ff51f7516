"""The first phase of curate: from each picture, the few columns that the plan needs."""

from typing import Any

import numpy as np
import pdqhash
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.dataset import Shard, decode_row
from pipeline.pictures import pixel_digest
from pipeline.schemas import HASHES

_PDQ_SIDE_PX = 64
"""The side PDQ itself reduces to; its own reduction gives other bits for another size."""
_LOWEST_QUALITY = 50
"""Of 100; below it PDQ says nothing of a picture, whose surface is flat."""


def hash_shard(shard: Shard) -> pa.Table:
    """Hash the pictures of one shard of `raw`.

    Returns:
        `schemas.HASHES`, a row a picture; `pixels` is null where the picture was taken down, and
        `pdq` also where it is flat.

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
            "pdq": [its.get("pdq") for its in shown],
            "colours": [its.get("colours") for its in shown],
        },
        schema=HASHES,
    )


def perceptual_hash(picture: Image.Image) -> bytes | None:
    """The PDQ hash of an RGB picture, 256 bits; None where it is too flat to have one."""
    small = picture.resize((_PDQ_SIDE_PX, _PDQ_SIDE_PX), Image.Resampling.BICUBIC)
    bits, quality = pdqhash.compute(np.asarray(small))
    return np.packbits(bits.astype(np.uint8)).tobytes() if quality >= _LOWEST_QUALITY else None


def coarse_colours(picture: Image.Image) -> bytes:
    """The means of 4 x 4 cells of an RGB picture, three bytes each, row by row."""
    return picture.resize((4, 4), Image.Resampling.BOX).tobytes()


def _hash_picture(picture: Image.Image) -> dict[str, Any]:
    return {
        "pixels": pixel_digest(picture),
        "pdq": perceptual_hash(picture),
        "colours": coarse_colours(picture),
    }
