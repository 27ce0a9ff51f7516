"""The pictures of an index by their uids: what is known of them, and their bytes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from indexes.retrieval import FoundPicture, RetrievalIndex
from pipeline import tombstones
from pipeline.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.storage import Folder

_NUM_EXAMPLES = 48


class Catalogue:
    """Pictures by uid, as far as they are indexed and not taken down.

    Args:
        index: whose pictures they are.
        pairs: that were indexed, of each part of the index; they hold their bytes.
    """

    def __init__(self, index: RetrievalIndex, pairs: Sequence[Dataset]) -> None:
        self._index, self._pairs = index, tuple(pairs)
        self._shard = lru_cache(1024)(lambda part, number: self._pairs[part].shard(number))
        self._begins = _first_halves(index)
        self._order = np.argsort(self._begins, kind="stable")
        self._sorted = self._begins[self._order]

    @property
    def files(self) -> list[tuple[Folder, str]]:
        """As `changing_files`."""
        return changing_files(self._index, self._pairs)

    @property
    def has_additions(self) -> bool:
        return self._index.has_additions

    def find(self, uid: bytes) -> FoundPicture | None:
        """What is known of a picture; None where there is none, or it was taken down."""
        if uid in self._index.tombstones:
            return None
        begin = np.uint64(int.from_bytes(uid[:8], "big"))
        first, last = (np.searchsorted(self._sorted, begin, side) for side in ("left", "right"))
        places = self._order[first:last]
        for found in self._index.pictures_at(places, np.ones(len(places))):
            if found.uid == uid:
                return None if uid in self._pairs[found.part].tombstones else found
        return None

    def picture(self, uid: bytes) -> bytes | None:
        """The stored JPEG of a picture; None as `find`.

        Raises:
            DatasetError: its shard is damaged.
        """
        found = self.find(uid)
        if found is None:
            return None
        table = self._shard(found.part, found.shard).table
        (stored,) = table.slice(found.row, 1).select(["uid", "picture"]).to_pylist()
        if stored["uid"] != uid or stored["picture"] is None:
            raise DatasetError(
                f"{self._pairs[found.part].folder}: row {found.row} of shard {found.shard:05d} is "
                f"not picture {uid.hex()}"
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


def changing_files(index: RetrievalIndex, pairs: Sequence[Dataset]) -> list[tuple[Folder, str]]:
    """What additions and takedowns write anew, by folder and name; arguments as `Catalogue`."""
    return index.changing_files + [(its.folder, tombstones.FILE) for its in pairs]


def _first_halves(index: RetrievalIndex) -> np.ndarray:
    """uint64[N]: the first eight bytes of each uid."""
    column = index.pictures.column("uid").combine_chunks()
    start = column.offset * column.type.byte_width
    size = len(column) * column.type.byte_width
    halves = np.frombuffer(column.buffers()[1], ">u8", size // 8, start) if size else np.zeros(0)
    return halves.reshape(-1, 2)[:, 0].astype(np.uint64)
