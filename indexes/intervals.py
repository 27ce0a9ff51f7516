"""How sure a measured share is: bootstrap over pictures."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_LOW, _HIGH = 0.025, 0.975
_WEIGHTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A share with its 95% interval."""

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
    num_pictures = len(hits)
    dice = np.random.default_rng(seed)
    chances = np.full(num_pictures, 1 / num_pictures)
    at_once = max(1, _WEIGHTS_AT_ONCE // num_pictures)
    shares = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = dice.multinomial(num_pictures, chances, size=size).astype(np.float64)
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
