"""What a search finds, and what whatever is searched has in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from indexes.exact import check_lengths


@dataclass(frozen=True)
class Hits:
    """What a query found, best first; of equal scores the lower item comes first."""

    items: np.ndarray
    """int64[n]; fewer than asked for where there are no more."""
    scores: np.ndarray
    """float64[n], exact cosines."""

    @staticmethod
    def none() -> "Hits":
        return Hits(np.zeros(0, np.int64), np.zeros(0))


class Searcher(Protocol):
    """Items of A vectors each, to be searched by max-similarity."""

    @property
    def items(self) -> np.ndarray:
        """int64[N], ascending."""

    @property
    def embed_dim(self) -> int:
        """E"""

    @property
    def vectors_per_item(self) -> int:
        """A"""

    def __len__(self) -> int:
        """N"""

    def search(
        self, queries: np.ndarray, k: int, *, without: np.ndarray | tuple[()] = ()
    ) -> list[Hits]:
        """The k items closest to each query.

        Args:
            queries: float32[n, A', E], L2-normalised: n queries of A' vectors each.
            k: items wanted, at least 1.
            without: int64[...], items that must not be found.

        Raises:
            ValueError: k or the shape is wrong, or a query is not normalised.
        """


def checked(queries: np.ndarray, k: int, embed_dim: int) -> np.ndarray:
    """Queries [n, A', E] as FAISS takes them; raises as `Searcher.search`."""
    if k < 1:
        raise ValueError(f"k={k} is not positive")
    if queries.ndim != 3 or queries.shape[1] < 1 or queries.shape[2] != embed_dim:
        raise ValueError(f"queries are {queries.shape}, not [n, A, {embed_dim}]")
    check_lengths(queries)
    return np.ascontiguousarray(queries, np.float32)


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of what one query found in several places that share no item."""
    items = np.concatenate([hits.items for hits in parts])
    scores = np.concatenate([hits.scores for hits in parts])
    order = np.lexsort((items, -scores))[:k]
    return Hits(items[order], scores[order])
