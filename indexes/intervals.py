"""How sure a measured share or median is: bootstrap over pictures."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_LOW, _HIGH = 0.025, 0.975
_WEIGHTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A number that was measured, with its 95% interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap(
    hits: np.ndarray, counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """Shares of hits, with percentile intervals over resampled pictures.

    All that belongs to a picture (its captions, its ITM pairs) stays together, for it is not
    independent.

    Args:
        hits: [N, S], how many of each picture's trials hit, for each of S shares.
        counts: [N, S], how many trials each picture has; all pictures together some in each S.
        resamples: how often N pictures are drawn with replacement.
        seed: of the draws; the same for all shares, so that they can be compared.

    Returns:
        S estimates: sum of hits over sum of counts.

    Raises:
        ValueError: the shapes differ, or a share has no trial.
    """
    if hits.shape != counts.shape or hits.ndim != 2:
        raise ValueError(f"hits are {hits.shape}, counts {counts.shape}; both must be [N, S]")
    totals = counts.sum(axis=0)
    if not (totals > 0).all():
        raise ValueError("a share of nothing")
    shares = []
    for weights in _drawn(len(hits), resamples, seed):
        drawn = weights @ counts
        # A resample without any trial says nothing; it can only be one of very few pictures.
        shares.append(
            np.divide(weights @ hits, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
        )
    low, high = np.nanquantile(np.concatenate(shares), [_LOW, _HIGH], axis=0)
    return [
        Estimate(*map(float, of_one))
        for of_one in zip(hits.sum(axis=0) / totals, low, high, strict=True)
    ]


def bootstrap_median(
    values: np.ndarray,
    owners: np.ndarray,
    num_pictures: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The median of trials, with a percentile interval over resampled pictures.

    Of an even number it is the mean of the two in the middle.

    Args:
        values: float[M], one a trial; some.
        owners: int[M], the picture of each trial, all of whose trials stay together.
        num_pictures: N, that are drawn; those without trials count as pictures too.
        resamples, seed: see `bootstrap`; equal seeds draw the same pictures.

    Raises:
        ValueError: there is no trial.
    """
    if not len(values):
        raise ValueError("a median of nothing")
    order = np.argsort(values, kind="stable")
    ordered, owners = np.asarray(values, np.float64)[order], owners[order]
    medians = []
    for weights in _drawn(num_pictures, resamples, seed, trials=len(values)):
        reached = weights[:, owners].cumsum(axis=1)
        total = reached[:, -1:]
        middles = [
            ordered[np.minimum((reached <= middle).sum(axis=1), len(ordered) - 1)]
            for middle in ((total - 1) // 2, total // 2)
        ]
        medians.append(np.where(total[:, 0] > 0, np.mean(middles, axis=0), np.nan))
    low, high = np.nanquantile(np.concatenate(medians), [_LOW, _HIGH])
    return Estimate(float(np.median(ordered)), float(low), float(high))


def _drawn(num_pictures: int, resamples: int, seed: int, trials: int = 0) -> Iterator[np.ndarray]:
    """float64[some, N]: how often each picture is in each resample, some resamples at a time."""
    dice = np.random.default_rng(seed)
    chances = np.full(num_pictures, 1 / num_pictures)
    at_once = max(1, _WEIGHTS_AT_ONCE // max(num_pictures, trials))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield dice.multinomial(num_pictures, chances, size=size).astype(np.float64)
