"""Captions that many pictures have: counted over all inputs of curate, by their digests alone.

`hash` writes the digests of each shard's captions beside its hashes; once the plan says which
pictures are one, they are counted; `gather` looks each caption up. Memory is some 40 bytes a
caption while they are counted, whatever the captions weigh.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from pipeline.captions import judge
from pipeline.schemas import KEPT

CAPTION_DIGESTS = pa.schema([("input_row", pa.int32()), ("digest", pa.uint64())])
"""A row for each caption of a shard of `raw` that has something to say."""

RECURRING = pa.schema([("digest", pa.uint64()), ("num_pictures", pa.int64())])
"""Captions that several pictures have, by digest; ascending."""


def text_digest(text: str) -> int:
    """64 bits of BLAKE2b over a normalised text's UTF-8.

    Among ten billion captions three pairs of texts may share one, and are counted together.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def caption_digests(captions: pa.ChunkedArray) -> pa.Table:
    """`CAPTION_DIGESTS` of a column of caption lists."""
    rows, digests = [], []
    for row, some in enumerate(captions.to_pylist()):
        for caption in map(judge, some or []):
            if caption["status"] == KEPT:
                rows.append(row)
                digests.append(text_digest(caption["text"]))
    columns = [pa.array(rows, pa.int32()), pa.array(digests, pa.uint64())]
    return pa.table(columns, schema=CAPTION_DIGESTS)


def count_recurring(
    plan: pa.Table, digests: Iterable[tuple[int, pa.Table]], more_than: int
) -> pa.Table:
    """Count the different pictures that have each caption.

    Args:
        plan: `schemas.PLAN`; rows that are united are one picture, those that go nowhere none.
        digests: number of an input shard and its `CAPTION_DIGESTS`.
        more_than: captions of no more pictures than so are left out.

    Returns:
        `RECURRING`.
    """
    placed = plan.slice(0, plan.num_rows - plan.column("output_shard").null_count)
    picture = np.cumsum(np.asarray(placed.column("outcome")) == KEPT)  # each group begins with it
    shard, row = (placed.column(name).to_numpy() for name in ("input_shard", "input_row"))
    order = np.argsort(shard, kind="stable")
    bounds = shard[order]
    found = [np.zeros((0, 2), np.uint64)]
    for number, table in digests:
        mine = order[slice(*np.searchsorted(bounds, (number, number + 1)))]
        rows = table.column("input_row").to_numpy()
        picture_of_row = np.zeros(max(rows.max(initial=-1), row[mine].max(initial=-1)) + 1, int)
        picture_of_row[row[mine]] = picture[mine]
        pictures = picture_of_row[rows]
        both = np.stack([table.column("digest").to_numpy(), pictures.astype(np.uint64)], axis=1)
        found.append(both[pictures > 0])
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    digest, count = np.unique(pairs[new, 0], return_counts=True)
    many = count > more_than
    return pa.table([digest[many], count[many].astype(np.int64)], schema=RECURRING)


def counts_of(texts: Sequence[str], recurring: pa.Table) -> np.ndarray:
    """int64[N]: how many pictures have each text as a caption; 1 where that was left out."""
    if not recurring.num_rows:
        return np.ones(len(texts), np.int64)
    known, counts = (recurring.column(name).to_numpy() for name in RECURRING.names)
    digests = np.array([text_digest(text) for text in texts], np.uint64)
    place = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    return np.where(known[place] == digests, counts[place], 1)
