"""Recall at k between pictures and captions, in both directions, with ties counted against us.

A picture's query is right if any of its captions is among the first k, a caption's if its picture
is. The rank of a query is the number of wrong items that score at least as much as its best right
one (`indexes.ranking`), so a model that gives everything the same score has recall 0 and not
chance. Median ranks are told counted from 1, as in papers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexes.intervals import RESAMPLES, Estimate, bootstrap, bootstrap_median
from indexes.ranking import Right, own_scores, rank

AT = (1, 5, 10)
DIRECTIONS = ("picture_to_text", "text_to_picture")


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
    """Recall at k and median rank, in both directions."""

    picture_to_text: Mapping[int, Estimate]
    text_to_picture: Mapping[int, Estimate]
    picture_median: Estimate
    """Of the ranks of pictures' best captions, from 1."""
    text_median: Estimate
    """Of the ranks of captions' pictures, from 1."""

    def to_json(self) -> dict[str, Any]:
        shares = {
            name: {str(k): estimate.to_json() for k, estimate in getattr(self, name).items()}
            for name in DIRECTIONS
        }
        medians = zip(DIRECTIONS, (self.picture_median, self.text_median), strict=True)
        return shares | {"median_rank": {name: median.to_json() for name, median in medians}}


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
    num_pictures, _, embed_dim = pictures.shape
    owners = np.asarray(owners, np.int64)
    if texts.shape != (len(owners), embed_dim):
        raise ValueError(f"texts are {texts.shape}, not {(len(owners), embed_dim)}")
    if not ((owners >= 0) & (owners < num_pictures)).all():
        raise ValueError(f"owners are not all among {num_pictures} pictures")
    captions, texts = np.arange(len(owners)), texts[:, None]
    own = own_scores(pictures, texts[:, 0], owners)
    return Ranks(
        rank(pictures, Right(owners, captions, own), [(0, texts)]).ranks,
        rank(texts, Right(captions, owners, own), [(0, pictures)]).ranks,
        owners,
    )


def recall(
    ranks: Ranks, at: Sequence[int] = AT, *, resamples: int = RESAMPLES, seed: int = 0
) -> Recall:
    """Recall and median rank with 95% intervals, bootstrapped over pictures that have captions.

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
    of_pictures = ranks.pictures[has_captions]
    medians = [
        bootstrap_median(1 + found, whose, count, resamples=resamples, seed=seed)
        for found, whose in ((of_pictures, np.arange(count)), (ranks.captions, owners))
    ]
    return Recall(
        dict(zip(at, estimates[: len(ks)], strict=True)),
        dict(zip(at, estimates[len(ks) :], strict=True)),
        *medians,
    )


def chance(owners: np.ndarray, num_pictures: int, at: Sequence[int] = AT) -> Recall:
    """Recall and median rank of a random order of all items, in closed form.

    A caption finds its picture among the first k of N with k / N. A picture with m of M captions
    misses all of them with C(M - m, k) / C(M, k); its median is the first k of which half of the
    pictures have one.

    Args:
        owners: int[M], the picture of each caption.
        num_pictures: N.
        at: the k.

    Raises:
        ValueError: there are no captions.
    """
    if not len(owners):
        raise ValueError("a share of nothing")
    sizes, pictures = np.unique(np.bincount(owners), return_counts=True)
    sizes, pictures = sizes[sizes > 0], pictures[sizes > 0]
    found = 1 - _all_missed(sizes, len(owners)).T @ pictures / pictures.sum()
    return Recall(
        {k: _certain(found[min(k, len(owners))]) for k in at},
        {k: _certain(min(1, k / num_pictures)) for k in at},
        _certain(int((found < 0.5).sum())),
        _certain((num_pictures + 1) / 2),
    )


def _all_missed(sizes: np.ndarray, total: int) -> np.ndarray:
    """float64[..., total + 1]: chance that none of `sizes` is among the first 0, 1, ... of all."""
    drawn = np.arange(total)
    one_more = np.maximum(total - sizes[:, None] - drawn, 0) / (total - drawn)
    return np.hstack([np.ones((len(sizes), 1)), one_more.cumprod(axis=1)])


def _certain(value: float) -> Estimate:
    return Estimate(float(value), float(value), float(value))
