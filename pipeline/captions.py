"""Captions: one text each with its source and its status."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.schemas import KEPT

MAX_CHARS = 10_000
"""Longest caption taken, in characters as the source gave them; a longer one is no caption, and a
table of them would fill the memory."""
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""The Unicode categories Cc and Cs."""


class Caption(TypedDict):
    """A caption as it lies in a dataset (`schemas.CAPTION`)."""

    text: str
    source: str
    status: str


def web_caption(text: str) -> Caption:
    """A caption as the source gave it, not judged yet."""
    return Caption(text=text, source="web", status=KEPT)


def bounded(text: str) -> str:
    """A text that is too long cut to one character over the bound, by which `judge` knows it."""
    return text[: MAX_CHARS + 1]


def normalise(text: str) -> str:
    """NFC, control characters gone, runs of white space made one space.

    A caption that says nothing becomes empty. Scripts that need joiners keep them: only the
    Unicode categories Cc (control) and Cs (lone surrogates) go.
    """
    return " ".join(_CONTROLS.sub(" ", unicodedata.normalize("NFC", text)).split())


def judge(caption: Caption) -> Caption:
    """The caption with its text normalised; rejected where nothing is left of it, or too much."""
    text = normalise(caption["text"][:MAX_CHARS])
    status = caption["status"]
    if not text:
        status = "rejected:empty"
    elif status == KEPT and len(caption["text"]) > MAX_CHARS:
        status = "rejected:too_long"
    return Caption(text=text, source=caption["source"], status=status)


def unite(captions: Iterable[Caption]) -> tuple[list[Caption], int]:
    """Captions of one picture with equal texts made one, the first of each.

    Returns:
        The captions in order, and how many were taken out.
    """
    first: dict[str, Caption] = {}
    count = 0
    for caption in captions:
        count += 1
        first.setdefault(caption["text"], caption)
    return list(first.values()), count - len(first)


def open_captions(location: str) -> Dataset:
    """Open a dataset whose rows have captions and a split: `pairs`, or `captions` beside it.

    Raises:
        ConfigError: there is none, it is not finished, or it is of another kind.
        DatasetError: dataset.json is damaged.
    """
    dataset = Dataset.open(location)
    if dataset.kind == "candidates":
        raise ConfigError(
            f"{dataset.folder}: holds 'candidates', of which none is chosen yet; "
            f"`viaduct select-captions {location} --out captions` does that"
        )
    if dataset.kind not in ("pairs", "captions"):
        raise ConfigError(
            f"{dataset.folder}: holds {dataset.kind!r}, but 'pairs' or 'captions' is needed"
        )
    return dataset


def in_a_line(captions: pa.ChunkedArray) -> tuple[pa.StructArray, np.ndarray]:
    """The captions of all rows one after the other, and int64[N], which row each is of.

    Args:
        captions: a column of `schemas.CAPTION` or `schemas.SCORED_CAPTION` lists.
    """
    column = captions.combine_chunks()
    return pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()


def strings(captions: pa.StructArray, name: str) -> np.ndarray:
    """object[N]: text, source or status of captions, in memory of its own."""
    return np.array(pc.struct_field(captions, name).to_pylist(), object)


def kept_texts(
    captions: pa.ChunkedArray | Iterable[Sequence[Any] | None],
) -> list[list[tuple[int, str]]]:
    """The captions in use of each row.

    Args:
        captions: a column of `schemas.CAPTION` lists, or the same in Python; None has none.

    Returns:
        For each row (ordinal, text) of those kept; the ordinal counts all of the row's captions.
    """
    rows = captions.to_pylist() if isinstance(captions, pa.ChunkedArray) else captions
    return [
        [(i, caption["text"]) for i, caption in enumerate(row or []) if caption["status"] == KEPT]
        for row in rows
    ]
