"""Diversity of captions: how many of their words, word pairs and texts are different ones.

Counted by 64-bit digests, so that the parts of a dataset can be counted apart and added up.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.recurring import text_digest

_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Tells a pair of words from the same two in the other order."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Diversity:
    """Counts of words, word pairs and texts, capitals aside; words stand between white space."""

    num_words: int
    num_word_pairs: int
    words: np.ndarray
    """uint64: the digests of all different words, ascending."""
    word_pairs: np.ndarray
    """uint64: of all different words that stand beside each other."""
    texts: np.ndarray
    """uint64: of all different texts."""
    counts: np.ndarray
    """int64: how many captions have each of these texts."""

    @staticmethod
    def of(texts: Sequence[str]) -> "Diversity":
        """Count these captions."""
        folded = [text.casefold() for text in texts]
        rows = pa.array([text.split() for text in folded], pa.list_(pa.string()))
        coded = pc.list_flatten(rows).dictionary_encode()
        known = np.array([text_digest(word) for word in coded.dictionary.to_pylist()], np.uint64)
        words = known[coded.indices.to_numpy()]
        owner = pc.list_parent_indices(rows).to_numpy()
        pairs = (words[:-1] * _ODD + words[1:])[owner[:-1] == owner[1:]]
        digests = np.array([text_digest(text) for text in folded], np.uint64)
        different, counts = np.unique(digests, return_counts=True)
        return Diversity(
            len(words), len(pairs), np.unique(words), np.unique(pairs), different, counts
        )

    @staticmethod
    def total(parts: Iterable["Diversity"]) -> "Diversity":
        """The sum of several."""
        return added_up(parts, _added, lambda part: len(part.texts))

    @property
    def num_captions(self) -> int:
        return int(self.counts.sum())

    def to_json(self) -> dict[str, float | int]:
        """The measures that people know: distinct-n (Li et al. 2016), length, equal captions.

        `distinct_1` and `distinct_2` are different words and word pairs over all of them, so they
        fall as captions become more; `identical_share` is the share of captions whose text
        another one has too.
        """
        return {
            "captions": self.num_captions,
            "mean_words": share_of(self.num_words, self.num_captions),
            "distinct_1": share_of(len(self.words), self.num_words),
            "distinct_2": share_of(len(self.word_pairs), self.num_word_pairs),
            "identical_share": share_of(int(self.counts[self.counts > 1].sum()), self.num_captions),
        }


def added_up(
    parts: Iterable[Part], add: Callable[[list[Part]], Part], size: Callable[[Part], int]
) -> Part:
    """The sum of many parts, one in memory after the other.

    Parts wait until they are as large together as their sum so far, so that each is copied a few
    times only.

    Args:
        parts: any number.
        add: the sum of some, of none too.
        size: of a part, in any unit.
    """
    whole = add([])
    waiting: list[Part] = []
    for part in parts:
        waiting.append(part)
        if sum(map(size, waiting)) > size(whole):
            whole, waiting = add([whole, *waiting]), []
    return add([whole, *waiting])


def _added(parts: Sequence[Diversity]) -> Diversity:
    parts = [Diversity.of([]), *parts]
    digests, counts = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("texts", "counts")
    )
    different, place = np.unique(digests, return_inverse=True)
    summed = np.zeros(len(different), np.int64)
    np.add.at(summed, place, counts)
    return Diversity(
        sum(part.num_words for part in parts),
        sum(part.num_word_pairs for part in parts),
        np.unique(np.concatenate([part.words for part in parts])),
        np.unique(np.concatenate([part.word_pairs for part in parts])),
        different,
        summed,
    )


def share_of(count: int, of: int) -> float:
    """Of nothing it is 0; rounded, for people."""
    return round(count / of, 6) if of else 0.0
