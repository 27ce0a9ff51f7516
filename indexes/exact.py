"""Inner products that no order of summation changes.

A BLAS library sums in another order at the edge of a block than in its middle, so that equal
vectors may get scores that differ in the last bit, and a tie be decided by where they lie. Here
vectors are first rounded to multiples of 2^-26, which moves a cosine by some 1e-8. Products of two
are then multiples of 2^-52, and by Cauchy-Schwarz every partial sum is below 2: float64 holds all
of them exactly. So equal vectors have equal scores, whatever the block, the library or the number
of threads.
"""

import numpy as np

_STEPS = 2.0**26
_LONGEST = 1.001


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """Vectors whose inner products `@` gives exactly.

    Args:
        vectors: float[..., E], L2-normalised.

    Returns:
        float64[..., E], multiples of 2^-26.

    Raises:
        ValueError: a vector is longer than 1, or not finite.
    """
    check_lengths(vectors)
    return np.rint(np.asarray(vectors, np.float64) * _STEPS) / _STEPS


def check_lengths(vectors: np.ndarray) -> None:
    """Raise ValueError unless all vectors [..., E] are finite and no longer than 1."""
    squares = np.einsum("...e,...e->...", vectors, vectors)
    if not (squares <= _LONGEST**2).all():  # NaN fails too
        longest = float(squares.max()) ** 0.5
        raise ValueError(f"vectors of length up to {longest:.4g} are not normalised")


def error_bound(embed_dim: int) -> float:
    """How far a float32 inner product of two such vectors may be from the exact one.

    E roundings of 2^-24 in the sum, in any order, and those of the grid, 2^-27 in each of the
    values of both.
    """
    return _LONGEST**2 * (embed_dim + embed_dim**0.5) * 2.0**-24
