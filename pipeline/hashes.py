"""The first phase of curate: from each picture, the few columns that the plan needs."""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Shard, decode_row
from pipeline.pictures import pixel_digest
from pipeline.schemas import HASHES


def hash_shard(shard: Shard) -> pa.Table:
    """Hash the pictures of one shard of `raw`.

    Returns:
        `schemas.HASHES`, a row a picture; `pixels` is null where the picture was taken down.

    Raises:
        DatasetError: a picture cannot be decoded; it is named.
    """
    table = shard.table
    original = pc.multiply(
        table.column("original_width_px").cast(pa.int64()),
        table.column("original_height_px").cast(pa.int64()),
    )
    return pa.table(
        {
            "uid": table.column("uid"),
            "pixels": [
                pixel_digest(decode_row(shard, row)) if live else None
                for row, live in enumerate(shard.live.to_pylist())
            ],
            "stored_bytes": pc.binary_length(table.column("picture")),
            "original_pixels": original,
            "num_captions": pc.list_value_length(table.column("captions")),
        },
        schema=HASHES,
    )
