"""How widely an approximate index has to look to find a share of what an exact search finds."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from indexes.approximate import TUNED_FOR, ApproximateIndex
from indexes.maxsim import MaxSimIndex
from indexes.proposer import Width

logger = logging.getLogger(__name__)

_LONGEST = 4096
_NS_OF_SHORTLISTED = 250.0
_NS_OF_VALUE = {"ivf": 0.05, "ivfpq": 0.004, "hnsw": 0.0}
"""Of one core, for each value of a vector that is read; what matters is their proportion to
`_NS_OF_SHORTLISTED`."""


@dataclass(frozen=True)
class Measured:
    """What share of the ten best a search finds."""

    recall: float
    num_queries: int


def tuned(
    index: ApproximateIndex, queries: np.ndarray, target: float
) -> tuple[ApproximateIndex, Measured]:
    """The index with the cheapest width that reaches a recall, and what it reaches.

    The width is chosen on one half of the queries and measured on the other. It has to reach the
    target by two standard errors more, or a lucky draw would do.

    Args:
        index: of any width.
        queries: float32[n, A', E], at least two.
        target: recall at ten, 0 to 1.
    """
    ours, others = queries[::2], queries[1::2]
    width = _cheapest(index, ours, target)
    chosen = ApproximateIndex(index.exact, index.proposer, index.per_item, width)
    found = measured(chosen, others)
    if found.recall < target:
        logger.warning("recall=%.4f target=%.4f width=%s", found.recall, target, width)
    return chosen, found


def measured(index: ApproximateIndex, queries: np.ndarray, k: int = TUNED_FOR) -> Measured:
    """Recall at k of a search; of equal scores any item is right.

    Args:
        index: whose exact index knows the truth.
        queries: float32[n, A', E]
        k: items.
    """
    true = index.exact.search(queries, k)
    found = index.search(queries, k)
    right = [
        (mine.scores >= its.scores[-1]).sum() / len(its.scores)
        for mine, its in zip(found, true, strict=True)
    ]
    return Measured(float(np.mean(right)), len(queries))


def true_places(exact: MaxSimIndex, queries: np.ndarray) -> np.ndarray:
    """int64[n, k]: places of the ten best of each query, or of all items if there are fewer."""
    found = exact.search(queries, min(TUNED_FOR, len(exact)))
    return np.searchsorted(exact.items, np.stack([hits.items for hits in found]))


def cost_ns(index: ApproximateIndex, width: Width) -> float:
    """About what a query's vector costs, in nanoseconds of a core."""
    values = len(index.proposer) / index.proposer.lists * index.embed_dim
    each = index.vectors_per_item if index.per_item < index.vectors_per_item else 1
    return (
        width.probes * values * _NS_OF_VALUE[index.proposer.kind]
        + width.shortlist * each * _NS_OF_SHORTLISTED
    )


def _cheapest(index: ApproximateIndex, queries: np.ndarray, target: float) -> Width:
    """The cheapest width that reaches a recall, or the best one if none does."""
    truth = true_places(index.exact, queries)
    longest = min(_LONGEST, len(index.proposer))
    shortlists = sorted({*_doubling(min(2 * TUNED_FOR, longest), longest), longest})
    reaching: list[Width] = []
    shares: dict[Width, float] = {}
    for probes in sorted({*_doubling(1, index.proposer.lists), index.proposer.lists}):
        if reaching and cost_ns(index, Width(probes, 0)) > cost_ns(index, reaching[0]):
            break
        for width, found in _tried(index, queries, truth, probes, shortlists).items():
            shares[width] = found.mean()
            if _surely(found) >= target:
                reaching.append(width)
        reaching.sort(key=lambda width: (cost_ns(index, width), width.shortlist))
    if reaching:
        return reaching[0]
    return max(shares, key=lambda width: (shares[width], -cost_ns(index, width)))


def _tried(
    index: ApproximateIndex,
    queries: np.ndarray,
    truth: np.ndarray,
    probes: int,
    shortlists: list[int],
) -> dict[Width, np.ndarray]:
    """What share of the truth each query finds, by width; `shortlists` ascend."""
    if index.proposer.kind == "hnsw":  # finds others first if it looks for more
        ranks = [true_ranks(index, queries, truth, Width(probes, most)) for most in shortlists]
    else:
        longest = Width(probes, shortlists[-1])
        ranks = [true_ranks(index, queries, truth, longest)] * len(shortlists)
    return {
        Width(probes, shortlist): (its < shortlist).mean(axis=1)
        for shortlist, its in zip(shortlists, ranks, strict=True)
    }


def true_ranks(
    index: ApproximateIndex, queries: np.ndarray, truth: np.ndarray, width: Width
) -> np.ndarray:
    """Where in the shortlists of each query the first vector of each true item stands.

    Args:
        index: whose proposer is asked.
        queries: float32[n, A', E]
        truth: int64[n, k], places.
        width: of the search.

    Returns:
        int64[n, k]; the length of the shortlist where it is missing.
    """
    _, numbers = index.proposer.search(queries.reshape(-1, index.embed_dim), width)
    places = np.where(numbers < 0, -1, numbers // index.per_item)
    places = places.reshape(len(queries), queries.shape[1], -1)
    ranks = np.empty(truth.shape, np.int64)
    for query, (lists, its) in enumerate(zip(places, truth, strict=True)):
        is_there = lists[:, None] == its[:, None]  # [A', k, shortlist]
        first = np.where(is_there.any(axis=2), is_there.argmax(axis=2), width.shortlist)
        ranks[query] = first.min(axis=0)
    return ranks


def _surely(shares: np.ndarray) -> float:
    """A mean less two standard errors."""
    return float(shares.mean() - 2 * shares.std() / len(shares) ** 0.5)


def _doubling(first: int, most: int) -> Iterator[int]:
    while first < most:
        yield first
        first *= 2
