"""Which pictures of a dataset are captioned."""

from collections.abc import Iterable

import numpy as np

from pipeline.dataset import Dataset
from pipeline.token_reader import Presence

ALL = "all"
"""In place of a split: the pictures of all of them."""


class CaptionedRows:
    """The pictures of a split that have image tokens and were taken down nowhere.

    Args:
        features: of kind `features`; a shard of it that is not local is not fetched where none of
            its pictures is of the split.
        beside: datasets side by side with it, the first of which has captions and split.
        split: whose pictures, or `all`.
    """

    def __init__(self, features: Dataset, beside: tuple[Dataset, ...], split: str) -> None:
        self._captions, *self._others = beside
        self._split = split
        self._has_tokens = Presence(features)

    def of(self, number: int) -> np.ndarray:
        """int64[N]: the rows of a shard, ascending.

        Raises:
            DatasetError: the shard is missing in one of the datasets, or damaged.
        """
        shard = self._captions.shard(number, columns=["uid", "split"])
        wanted = np.asarray(shard.live)
        if self._split != ALL:
            wanted = wanted & (shard.table.column("split").to_numpy() == self._split)
        for other in self._others:
            wanted = wanted & np.asarray(other.shard(number, columns=["uid"]).live)
        return np.flatnonzero(wanted & self._has_tokens(number) if wanted.any() else wanted)

    def counts(self, numbers: Iterable[int], limit: int | None) -> dict[int, int]:
        """How many rows of each of these shards are captioned, the first ones of all.

        Args:
            numbers: of the shards, in order; those after the limit is reached are not opened.
            limit: pictures at most; None takes all.
        """
        found: dict[int, int] = {}
        left = limit
        for number in numbers:
            found[number] = 0
            if left != 0:
                rows = len(self.of(number))
                found[number] = rows if left is None else min(left, rows)
                left = None if left is None else left - found[number]
        return found
