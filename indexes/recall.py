"""Recall at k between pictures and captions, in both directions, with ties counted against us.

A picture's query is right if any of its captions is among the first k, a caption's if its picture
is. The rank of a query is the number of wrong items that score at least as much as its best right
one, so a model that gives everything the same score has recall 0 and not chance. Scores are exact
(`indexes.exact`): equal vectors tie wherever they stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexes.exact import on_grid
from indexes.intervals import RESAMPLES, Estimate, bootstrap

AT = (1, 5, 10)
_SCORES_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Ranks:
    """For each query, how many wrong items score at least as much as its best right one."""

    pictures: np.ndarray
    """int64[N]: of each picture among captions; -1 for a picture without captions, which is no
    query."""
    captions: np.ndarray
    """int64[M]: of each caption among pictures."""
    owners: np.ndarray
    """int64[M]: the picture of each caption."""


@dataclass(frozen=True)
class Recall:
    """Recall at k, in both directions."""

    picture_to_text: Mapping[int, Estimate]
    text_to_picture: Mapping[int, Estimate]

    def to_json(self) -> dict[str, Any]:
        return {
            name: {str(k): estimate.to_json() for k, estimate in getattr(self, name).items()}
            for name in ("picture_to_text", "text_to_picture")
        }


def ranks(pictures: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> Ranks:
    """Rank all pictures' captions and all captions' pictures, block by block.

    Args:
        pictures: float[N, Q, E], L2-normalised; or float[N, E] for one vector a picture.
        texts: float[M, E], L2-normalised.
        owners: int[M], the picture of each caption.

    Raises:
        ValueError: shapes do not match, an owner is no picture, or a vector is not normalised.
    """
    if pictures.ndim == 2:
        pictures = pictures[:, None]
    num_pictures, num_queries, embed_dim = pictures.shape
    owners = np.asarray(owners, np.int64)
    if texts.shape != (len(owners), embed_dim):
        raise ValueError(f"texts are {texts.shape}, not {(len(owners), embed_dim)}")
    if not ((owners >= 0) & (owners < num_pictures)).all():
        raise ValueError(f"owners are not all among {num_pictures} pictures")

    right = _own_scores(pictures, texts, owners)
    best = np.full(num_pictures, -np.inf)
    np.maximum.at(best, owners, right)
    # All items that score at least as much are counted first; then those that are right go.
    of_pictures = np.zeros(num_pictures, np.int64)
    of_captions = np.full(len(owners), -1, np.int64)
    np.subtract.at(of_pictures, owners[right == best[owners]], 1)
    side = max(1, int((_SCORES_AT_ONCE / num_queries) ** 0.5))
    for rows in _blocks(num_pictures, side):
        queries = on_grid(pictures[rows]).reshape(-1, embed_dim)
        for columns in _blocks(len(owners), side):
            scores = on_grid(texts[columns]) @ queries.T
            scores = scores.reshape(scores.shape[0], -1, num_queries).max(axis=2)
            of_pictures[rows] += (scores >= best[None, rows]).sum(axis=0)
            of_captions[columns] += (scores >= right[columns, None]).sum(axis=1)
    of_pictures[np.isinf(best)] = -1
    return Ranks(of_pictures, of_captions, owners)


def recall(
    ranks: Ranks, at: Sequence[int] = AT, *, resamples: int = RESAMPLES, seed: int = 0
) -> Recall:
    """Recall with 95% intervals, bootstrapped over the pictures that have captions.

    Args:
        ranks: of all queries.
        at: the k.
        resamples, seed: see `bootstrap`.

    Raises:
        ValueError: there are no captions.
    """
    has_captions = ranks.pictures >= 0
    number = np.cumsum(has_captions) - 1
    owners, ks = number[ranks.owners], np.array(at)
    count = int(has_captions.sum())
    picture_hits = ranks.pictures[has_captions, None] < ks
    caption_hits, captions = np.zeros((count, len(ks))), np.zeros((count, len(ks)))
    np.add.at(caption_hits, owners, ranks.captions[:, None] < ks)
    np.add.at(captions, owners, 1)
    estimates = bootstrap(
        np.hstack([picture_hits, caption_hits]),
        np.hstack([np.ones_like(captions), captions]),
        resamples=resamples,
        seed=seed,
    )
    return Recall(
        dict(zip(at, estimates[: len(ks)], strict=True)),
        dict(zip(at, estimates[len(ks) :], strict=True)),
    )


def chance(owners: np.ndarray, num_pictures: int, at: Sequence[int] = AT) -> Recall:
    """Recall of a random order of all items, in closed form.

    A caption finds its picture among N with k / N. A picture with m of M captions misses all of
    them with C(M - m, k) / C(M, k).

    Args:
        owners: int[M], the picture of each caption.
        num_pictures: N.
        at: the k.

    Raises:
        ValueError: there are no captions.
    """
    if not len(owners):
        raise ValueError("a share of nothing")
    counts = np.bincount(owners)
    counts = counts[counts > 0]
    return Recall(
        {k: _certain(1 - _all_missed(counts, len(owners), k).mean()) for k in at},
        {k: _certain(min(1, k / num_pictures)) for k in at},
    )


def _all_missed(counts: np.ndarray, total: int, k: int) -> np.ndarray:
    """float64[...]: chance that none of `counts` is among k of `total`, drawn without return."""
    drawn = np.arange(min(k, total))
    return (np.maximum(total - counts[:, None] - drawn, 0) / (total - drawn)).prod(axis=1)


def _certain(value: float) -> Estimate:
    return Estimate(float(value), float(value), float(value))


def _own_scores(pictures: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """float64[M]: each caption's similarity to its own picture."""
    scores = np.zeros(len(owners))
    size = max(1, _SCORES_AT_ONCE // (pictures.shape[1] * pictures.shape[2]))
    for part in _blocks(len(owners), size):
        own = on_grid(pictures[owners[part]])
        scores[part] = (own @ on_grid(texts[part])[:, :, None]).max(axis=(1, 2))
    return scores


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]
