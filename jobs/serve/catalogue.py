"""The pictures of an index by their uids: what is known of them, and their bytes."""

from functools import lru_cache
from typing import Any

import numpy as np

from indexes.retrieval import FoundPicture, RetrievalIndex
from pipeline.dataset import Dataset
from pipeline.errors import DatasetError

_NUM_EXAMPLES = 48


class Catalogue:
    """Pictures by uid, as far as they are indexed and not taken down.

    Args:
        index: whose pictures they are.
        pairs: that were indexed; holds their bytes.
    """

    def __init__(self, index: RetrievalIndex, pairs: Dataset) -> None:
        self._index, self._pairs = index, pairs
        self._shard = lru_cache(1024)(pairs.shard)
        self._begins = _first_halves(index)
        self._order = np.argsort(self._begins, kind="stable")
        self._sorted = self._begins[self._order]

    def find(self, uid: bytes) -> FoundPicture | None:
        """What is known of a picture; None where there is none, or it was taken down."""
        if uid in self._index.tombstones or uid in self._pairs.tombstones:
            return None
        begin = np.uint64(int.from_bytes(uid[:8], "big"))
        first, last = (np.searchsorted(self._sorted, begin, side) for side in ("left", "right"))
        for place in self._order[first:last].tolist():
            row = self._index.pictures.slice(place, 1).to_pylist()[0]
            if row["uid"] == uid:
                return FoundPicture(
                    1.0, uid, row["url"], row["captions"], row["shard"], row["shard_row"]
                )
        return None

    def picture(self, uid: bytes) -> bytes | None:
        """The stored JPEG of a picture; None as `find`.

        Raises:
            DatasetError: its shard is damaged.
        """
        found = self.find(uid)
        if found is None:
            return None
        row = self._shard(found.shard).table.slice(found.row, 1).select(["uid", "picture"])
        (stored,) = row.to_pylist()
        if stored["uid"] != uid or stored["picture"] is None:
            raise DatasetError(
                f"{self._pairs.folder}: row {found.row} of shard {found.shard:05d} is not picture "
                f"{uid.hex()}"
            )
        picture: bytes = stored["picture"]
        return picture

    def facts(self) -> dict[str, Any]:
        """What a page says of the index, with some of its pictures, spread evenly."""
        pictures = self._index.pictures
        places = np.linspace(0, max(0, pictures.num_rows - 1), _NUM_EXAMPLES).astype(int)
        uids = pictures.column("uid").take(np.unique(places)).to_pylist() if len(pictures) else []
        return {
            "index": self._index.digest,
            "num_pictures": pictures.num_rows,
            "has_captions": self._index.caption_vectors is not None,
            "examples": [uid.hex() for uid in uids if self.find(uid) is not None],
        }


def _first_halves(index: RetrievalIndex) -> np.ndarray:
    """uint64[N]: the first eight bytes of each uid."""
    column = index.pictures.column("uid").combine_chunks()
    start = column.offset * column.type.byte_width
    size = len(column) * column.type.byte_width
    halves = np.frombuffer(column.buffers()[1], ">u8", size // 8, start) if size else np.zeros(0)
    return halves.reshape(-1, 2)[:, 0].astype(np.uint64)
