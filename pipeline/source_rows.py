"""Rows of `schemas.SOURCE` out of cells of whatever type they came in."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.captions import bounded
from pipeline.schemas import EXTRA, SOURCE


def source_rows(
    locations: Sequence[str],
    captions: Sequence[list[str]],
    uid: Callable[[str], bytes],
    extra: pa.StructArray | None = None,
) -> pa.Table:
    """One table of `schemas.SOURCE`.

    Args:
        locations: URLs, or paths in the source.
        captions: of each location; each is cut to the bound of `captions.bounded`.
        uid: names a picture by its location.
        extra: what was kept of further columns; the table then has the column `extra`.
    """
    table = pa.table(
        {
            "uid": pa.array([uid(location) for location in locations], SOURCE.field("uid").type),
            "url": pa.array(locations, pa.string()),
            "captions": pa.array(
                [[bounded(caption) for caption in some] for some in captions],
                pa.list_(pa.string()),
            ),
        },
        schema=SOURCE,
    )
    return table if extra is None else table.append_column(EXTRA, extra)


def rows_digest(tables: Iterable[pa.Table]) -> str:
    """SHA-256 of what rows say, for sources whose files hold the pictures too."""
    sha = hashlib.sha256()
    for table in tables:
        sha.update(json.dumps(table.drop_columns("uid").to_pylist()).encode())
    return sha.hexdigest()


def caption_list(cell: Any) -> list[str]:
    """Captions of a row: a text, or a list of texts; a null is none.

    What JSON can hold besides (numbers, truth values, objects, a null in a list) is a caption that
    says nothing: an empty one, so that it is counted as such.
    """
    if is_null(cell):
        return []
    items = cell if isinstance(cell, list) else [cell]
    return [text(item) if isinstance(item, (str, bytes)) else "" for item in items]


def text(cell: Any) -> str:
    """A cell as text: null is empty, and what UTF-8 cannot hold (half of a surrogate pair, which
    JSON can write) is replaced."""
    if is_null(cell):
        return ""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", errors="replace")
    return str(cell).encode("utf-8", errors="replace").decode("utf-8")


def is_null(cell: Any) -> bool:
    """Whether a cell is none; pandas writes NaN for it, into JSON too."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
