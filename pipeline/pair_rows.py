"""Which rows of a dataset are pairs of a split, and what lies in them: columns, texts on demand.

Of 100 million pictures a rank holds 400 MB of row numbers; captions stay in the mapped files.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.schemas import KEPT
from pipeline.token_reader import OPEN_SHARDS, Presence, TokenReader, Wanted
from pipeline.views import view_of

_COLUMNS = ("uid", "captions", "split")
"""What is read of `pairs` or `captions`; never the pictures."""


class PairRows:
    """The pictures of one split that have image tokens and a kept caption, numbered from 0.

    Args:
        views: datasets of kind `features`, the first for evaluation.
        captions: a dataset beside them that has captions and split (`pairs` or `captions`).
        split: `train`, `validation` or `test`.
        seed: of the views that pictures show.

    Raises:
        ConfigError: they do not lie side by side, or the split is empty.
    """

    def __init__(
        self, views: Sequence[Dataset], captions: Dataset, split: str, seed: int = 0
    ) -> None:
        check_side_by_side(*views, captions)
        self._readers = [TokenReader(view) for view in views]
        self._seed = seed
        self._captions = captions
        self._shard = lru_cache(OPEN_SHARDS)(self._open)
        self.num_without_caption = 0
        """Pictures of the split that have no kept caption."""
        self._numbers = sorted(captions.records)
        presence = [Presence(view) for view in views]
        rows = []
        for number in self._numbers:
            shard = captions.shard(number, columns=_COLUMNS)
            here = (shard.table.column("split").to_numpy() == split) & np.asarray(shard.live)
            for present in presence:
                here &= present(number)
            told = _Captioned(shard.table).counts > 0
            self.num_without_caption += int((here & ~told).sum())
            rows.append(np.flatnonzero(here & told).astype(np.uint32))
        self.shard_sizes = np.array([len(its) for its in rows])
        """int64[S]: pictures in each shard, in their order; pictures are numbered along it."""
        self._rows = np.concatenate([np.zeros(0, np.uint32), *rows])
        self._ends = np.cumsum(self.shard_sizes)
        if not len(self._rows):
            raise ConfigError(
                f"{captions.folder}: its split {split!r} has no picture with a kept caption"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def places(self, pictures: np.ndarray) -> list[tuple[int, int]]:
        """Shard and row of each of these pictures, given by number."""
        shards = np.searchsorted(self._ends, pictures, side="right").tolist()
        rows = self._rows[pictures].tolist()
        return [(self._numbers[shard], row) for shard, row in zip(shards, rows, strict=True)]

    def wanted(self, pictures: np.ndarray, epochs: np.ndarray | None = None) -> list[Wanted]:
        """Where the tokens of each of these pictures are.

        Args:
            pictures: int64[B], their numbers.
            epochs: int64[B], in which each shows one of its views; None is for evaluation.
        """
        views = [0] * len(pictures)
        if epochs is not None and len(self._readers) > 1:
            uids = self.uids(pictures)
            views = view_of(uids, epochs, len(self._readers), self._seed).tolist()
        return [
            (self._readers[view].shard(number), row)
            for view, (number, row) in zip(views, self.places(pictures), strict=True)
        ]

    def texts(self, pictures: np.ndarray) -> list[list[str]]:
        """The kept captions of each of these pictures."""
        return [self._shard(number).of(row) for number, row in self.places(pictures)]

    def drawn(self, pictures: np.ndarray, draw: np.ndarray) -> list[str]:
        """One of the kept captions of each of these pictures.

        Args:
            pictures: int64[B], their numbers.
            draw: float64[B] in [0, 1), which of them.
        """
        places = zip(self.places(pictures), draw.tolist(), strict=True)
        return [self._shard(number).one_of(row, share) for (number, row), share in places]

    def uids(self, pictures: np.ndarray) -> list[bytes]:
        """The uid of each of these pictures."""
        return [self._shard(number).uids[row].as_py() for number, row in self.places(pictures)]

    def all_texts(self) -> Iterator[str]:
        """The kept captions of all pictures, in order."""
        for part in np.array_split(np.arange(len(self)), -(-len(self) // 1024)):
            for its in self.texts(part):
                yield from its

    def _open(self, number: int) -> "_Captioned":
        return _Captioned(self._captions.shard(number, columns=_COLUMNS).table)


class _Captioned:
    """The captions in use of a shard's rows, and their uids.

    Args:
        table: with the columns `uid` and `captions`.
    """

    def __init__(self, table: pa.Table) -> None:
        self.uids = table.column("uid").combine_chunks()
        column = table.column("captions").combine_chunks()
        flat = pc.list_flatten(column)
        in_use = pc.equal(pc.struct_field(flat, "status"), KEPT)
        self._texts = pc.struct_field(flat, "text").filter(in_use)
        rows = pc.list_parent_indices(column).filter(in_use).to_numpy()
        self.counts = np.bincount(rows, minlength=len(column))
        """int64[rows]: how many each row has."""
        self._starts = np.cumsum(self.counts) - self.counts

    def of(self, row: int) -> list[str]:
        """All of a row."""
        return self._texts.slice(self._starts[row], self.counts[row]).to_pylist()

    def one_of(self, row: int, share: float) -> str:
        """That of a row at a share of them in [0, 1)."""
        return self._texts[int(self._starts[row] + int(share * self.counts[row]))].as_py()
