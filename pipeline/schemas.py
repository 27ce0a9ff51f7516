"""The kinds of dataset and their Arrow schemas; docs/data-format.md tells them to the world."""

from collections.abc import Mapping

import pyarrow as pa

UID = pa.binary(16)
CAPTION = pa.struct([("text", pa.string()), ("source", pa.string()), ("status", pa.string())])
KEPT = "kept"
"""The status of a caption in use; any other is `rejected:<reason>`. Also a picture's outcome."""
TAKEN_DOWN = "taken_down"
"""The outcome of a picture in the tombstones of its dataset."""

SCORE = pa.struct([("judge", pa.string()), ("itc", pa.float32()), ("itm", pa.float32())])
"""How well a caption fits its picture, by one judge.

`judge` is `stage1:` with the first 12 digits of a checkpoint's digest, or `clip:NAME`; `itc` their
similarity, a cosine; `itm` the probability that they match, null for a judge that tells none.
"""
SCORED_CAPTION = pa.struct([*CAPTION, ("scores", pa.list_(SCORE))])

_PICTURE = [
    ("uid", UID),
    ("url", pa.string()),
    ("picture", pa.large_binary()),
    ("width_px", pa.int32()),
    ("height_px", pa.int32()),
    ("original_width_px", pa.int32()),
    ("original_height_px", pa.int32()),
    ("captions", pa.list_(CAPTION)),
]

SOURCE = pa.schema(
    [
        ("uid", UID),
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),
    ]
)
"""What a source says of each picture."""

SLICE = pa.schema([*SOURCE, ("source_row", pa.int64())])
"""What ingest cuts a source into before it fetches anything; gone once `raw` is published."""

RAW = pa.schema(_PICTURE)
"""Pictures that arrived."""

LEDGER = pa.schema([*SLICE, ("outcome", pa.string())])
"""Every row of the source with its outcome; beside each shard of `raw`."""

HASHES = pa.schema(
    [
        ("uid", UID),
        ("pixels", pa.binary(16)),
        ("stored_bytes", pa.int64()),
        ("original_pixels", pa.int64()),
        ("num_captions", pa.int32()),
        ("phash", pa.binary(32)),
        ("colours", pa.binary(48)),
    ]
)
"""What curate needs to know of each picture to plan; row i of shard k is that of its input."""

PLAN = pa.schema(
    [
        ("uid", UID),
        ("pixels", pa.binary(16)),
        ("cluster", pa.binary(16)),
        ("output_shard", pa.int32()),
        ("output_row", pa.int32()),
        ("input_shard", pa.int32()),
        ("input_row", pa.int32()),
        ("num_captions", pa.int32()),
        ("outcome", pa.string()),
    ]
)
"""Where each input row goes; sorted by output shard and row, the rows that go nowhere last.

`cluster` is the pixel digest of the best of all pictures that hang together as near-duplicates.
"""

PAIRS = pa.schema([*_PICTURE, ("split", pa.string())])

CANDIDATES = pa.schema(
    [("uid", UID), ("captions", pa.list_(SCORED_CAPTION)), ("split", pa.string())]
)
"""Captions beside `pairs`, the web's and those that a model wrote: all that were found
(`candidates`), or the same after some were chosen (`captions`)."""

EXTRA = "extra"
"""The column of what was kept of a source's further columns; absent where nothing was."""


def with_extra(schema: pa.Schema, kind: pa.StructType | None) -> pa.Schema:
    """A schema with the column `extra` of this type at its end, or as it is where there is none."""
    return schema if kind is None else schema.append(pa.field(EXTRA, kind))


def extra_type(schema: pa.Schema) -> pa.StructType | None:
    """The type of the column `extra`, or None where there is none."""
    return schema.field(EXTRA).type if EXTRA in schema.names else None


ROWS_PER_BATCH = {
    "source": 1024,
    "raw": 64,
    "ledger": 1024,
    "hashes": 1024,
    "caption_digests": 65536,
    "plan": 65536,
    "recurring": 65536,
    "pairs": 64,
    "candidates": 256,
    "captions": 256,
    "features": 16,
    "image_embeddings": 64,
    "text_embeddings": 256,
}
"""Rows of each record batch but a shard's last, by kind: small where a row is large."""

TOKEN_DTYPES = {"fp16": pa.float16(), "bf16": pa.uint16(), "int8": pa.int8()}
"""How image tokens are stored; bf16 as its bits, int8 as steps (`pipeline.token_codes`)."""


def features_schema(
    num_tokens: int, width: int, dtype: str, metadata: Mapping[bytes, bytes] | None = None
) -> pa.Schema:
    """Schema of `features`: a picture's tokens as one fixed-shape tensor [P, C].

    Args:
        num_tokens: P, image tokens a picture.
        width: C, values a token.
        dtype: a key of TOKEN_DTYPES; beside int8 there are scales, one a token.
        metadata: of int8's channels.
    """
    tokens = pa.fixed_shape_tensor(TOKEN_DTYPES[dtype], [num_tokens, width])
    columns = [("uid", UID), ("tokens", tokens)]
    if dtype == "int8":
        columns.append(("token_scales", pa.fixed_shape_tensor(pa.float32(), [num_tokens])))
    return pa.schema(columns, metadata)


def image_embeddings_schema(num_queries: int, embed_dim: int) -> pa.Schema:
    """Schema of `image_embeddings`: a picture's projected query outputs as one tensor [Q, E].

    Args:
        num_queries: Q, vectors a picture.
        embed_dim: E, values a vector.
    """
    vectors = pa.fixed_shape_tensor(pa.float32(), [num_queries, embed_dim])
    return pa.schema([("uid", UID), ("vectors", vectors)])


def text_embeddings_schema(embed_dim: int) -> pa.Schema:
    """Schema of `text_embeddings`: a vector [E] for each caption of a picture that is in use.

    `ordinals` counts in the row's `captions`; `texts_digest` is SHA-256 over the texts.

    Args:
        embed_dim: E, values a vector.
    """
    return pa.schema(
        [
            ("uid", UID),
            ("ordinals", pa.list_(pa.int32())),
            ("vectors", pa.list_(pa.list_(pa.float32(), embed_dim))),
            ("texts_digest", pa.binary(32)),
        ]
    )


def describe(schema: pa.Schema) -> dict[str, str]:
    """Column names to type names, as they stand in dataset.json."""
    return {field.name: _type_name(field.type) for field in schema}


def _type_name(kind: pa.DataType) -> str:
    if isinstance(kind, pa.FixedShapeTensorType):
        return f"fixed_shape_tensor<{kind.value_type}>{list(kind.shape)}"
    return str(kind)
