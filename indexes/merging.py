"""Fewer vectors for a picture: query outputs that say nearly the same become one.

An approximate index of merged vectors is smaller and quicker to search. What it proposes is still
scored by all vectors of the picture, so merging can lose a picture, but never changes a score.
"""

import numpy as np

_ROUNDS = 4


def merged(vectors: np.ndarray, count: int) -> np.ndarray:
    """Cluster the vectors of each item, by spherical k-means from vectors far from each other.

    Args:
        vectors: float32[n, A, E], L2-normalised.
        count: vectors wanted of each item.

    Returns:
        float32[n, count, E], L2-normalised; the vectors themselves where they are no more.
    """
    if count >= vectors.shape[1]:
        return vectors
    centres = _far_apart(vectors, count)
    for _ in range(_ROUNDS):
        nearest = (vectors @ centres.transpose(0, 2, 1)).argmax(axis=2)
        member = (nearest[..., None] == np.arange(count)).astype(np.float32)
        sums = member.transpose(0, 2, 1) @ vectors
        lengths = np.linalg.norm(sums, axis=2, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    return centres


def _far_apart(vectors: np.ndarray, count: int) -> np.ndarray:
    """float32[n, count, E]: the first vector of each item, then always the farthest from those."""
    rows = np.arange(len(vectors))
    chosen = np.zeros((len(vectors), count), np.int64)
    closest = np.full(vectors.shape[:2], -np.inf, np.float32)
    for number in range(1, count):
        last = vectors[rows, chosen[:, number - 1]]
        np.maximum(closest, (vectors @ last[..., None])[..., 0], out=closest)
        chosen[:, number] = closest.argmin(axis=1)
    return vectors[rows[:, None], chosen]
