"""As many pictures and captions as wanted, resampled from the embeddings of a trained checkpoint.

A new picture is one of the real ones moved as far as its like lie from each other: its noise is
made of the differences between two real pictures and their nearest neighbours, all Q vectors
together. A new caption comes of the real ones likewise. So neighbours lie as far from each other as
measured, in the directions in which they differ, and captions as far from pictures as they do.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.dataset import Dataset
from pipeline.embeddings import read_embeddings

_SAME = 0.99999
"""Cosine above which two are one, such as equal captions."""
_AT_ONCE = 1024
_ASKED = 32
"""Pictures whose distances are measured; of captions eight times as many."""


@dataclass(frozen=True)
class Embedded:
    """Embeddings of real pictures and their captions."""

    pictures: np.ndarray
    """float32[N, Q, E]"""
    captions: np.ndarray
    """float32[M, E]"""

    @staticmethod
    def read(images: Dataset, texts: Dataset) -> "Embedded":
        found = read_embeddings(images, texts)
        return Embedded(found.pictures, found.texts)

    @cached_property
    def picture_steps(self) -> np.ndarray:
        """float32[N, Q, E]: from each picture to the one most like it, vector for vector."""
        num, per_picture, _ = self.pictures.shape
        flat = self.pictures.reshape(num, -1)
        return self.pictures[_nearest(flat / per_picture**0.5)] - self.pictures

    @cached_property
    def caption_steps(self) -> np.ndarray:
        """float32[M, E]"""
        return self.captions[_nearest(self.captions)] - self.captions

    def new_pictures(self, num: int, dice: np.random.Generator) -> np.ndarray:
        """float32[num, Q, E], L2-normalised."""
        return _resampled(self.pictures, self.picture_steps, num, dice)

    def new_captions(self, num: int, dice: np.random.Generator) -> np.ndarray:
        """float32[num, E], L2-normalised."""
        return _resampled(self.captions, self.caption_steps, num, dice)


def distances(pictures: np.ndarray, captions: np.ndarray) -> dict[str, float]:
    """Median cosines in a set: how close the closest are.

    Args:
        pictures: float32[N, Q, E]
        captions: float32[M, E]

    Returns:
        `picture`, of a picture's vector to the closest vector of another picture; `caption`, of a
        caption to the closest vector of any picture; `gap`, the first less the second.
    """
    owners = np.arange(len(pictures))[:: max(1, len(pictures) // _ASKED)][:_ASKED]
    asked, texts = pictures[owners], captions[: 8 * _ASKED]
    vectors = np.concatenate([asked.reshape(-1, asked.shape[2]), texts])
    own = np.concatenate([np.repeat(owners, asked.shape[1]), np.full(len(texts), -1)])
    best = np.full(len(vectors), -np.inf, np.float32)
    for first in range(0, len(pictures), _AT_ONCE):
        block = pictures[first : first + _AT_ONCE]
        scores = (vectors @ block.reshape(-1, block.shape[2]).T).reshape(
            len(vectors), len(block), -1
        )
        scores = scores.max(axis=2)
        inside = (own >= first) & (own < first + len(block))
        scores[inside, own[inside] - first] = -np.inf
        np.maximum(best, scores.max(axis=1), out=best)
    picture, caption = (float(np.median(best[mask])) for mask in (own >= 0, own < 0))
    return {"picture": picture, "caption": caption, "gap": picture - caption}


def _nearest(vectors: np.ndarray) -> np.ndarray:
    """int64[n]: the nearest other of each, leaving out what is the same."""
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _AT_ONCE):
        scores = vectors[start : start + _AT_ONCE] @ vectors.T
        scores[scores > _SAME] = -np.inf
        nearest[start : start + _AT_ONCE] = scores.argmax(axis=1)
    return nearest


def _resampled(
    vectors: np.ndarray, steps: np.ndarray, num: int, dice: np.random.Generator
) -> np.ndarray:
    """Some of `vectors` [n, ..., E], each moved by a mixture of two steps of the same length."""
    made = np.empty((num, *vectors.shape[1:]), np.float32)
    ones = (1,) * (vectors.ndim - 1)
    for start in range(0, num, _AT_ONCE):
        size = min(_AT_ONCE, num - start)
        base, one, other = dice.integers(0, len(vectors), (3, size))
        angle = dice.uniform(0, 2 * np.pi, (size, *ones)).astype(np.float32)
        moved = vectors[base] + np.cos(angle) * steps[one] + np.sin(angle) * steps[other]
        made[start : start + size] = moved / np.linalg.norm(moved, axis=-1, keepdims=True)
    return made
