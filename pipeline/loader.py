"""Batches for training: image tokens from cached features, captions beside them.

Features are memory-mapped, and a batch copies its rows out of them once, in a thread of its own.
Pictures are never opened.
"""

import hashlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.dataset import Dataset
from pipeline.pair_rows import PairRows
from pipeline.token_reader import Wanted, gather

SPLITS = ("train", "validation", "test")

Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """Pictures with a caption each."""

    tokens: torch.Tensor
    """float16 or bfloat16 [B, P, C]"""
    texts: list[str]
    picture: torch.Tensor
    """int64[B]: a key, equal where pictures are."""
    caption: torch.Tensor
    """int64[B]: a key, equal where captions are."""


class Pairs:
    """The pictures of one split that have image tokens and a kept caption, numbered from 0.

    Args:
        features: dataset of kind `features`, or all its views (`views.open_views`).
        captions: a dataset beside it that has captions and split (`pairs` or `captions`).
        split: `train`, `validation` or `test`.
        seed: of the views that pictures show.
        pin: gather tokens where a GPU fetches them from.

    Raises:
        ConfigError: they do not lie side by side, or the split is empty.
    """

    def __init__(
        self,
        features: Dataset | Sequence[Dataset],
        captions: Dataset,
        split: str,
        *,
        seed: int = 0,
        pin: bool = False,
    ) -> None:
        self._split, self._seed = split, seed
        self._memory = BatchMemory(pin=pin)
        self.parts: list[PairRows] = []
        """Those of each dataset; pictures are numbered along them."""
        self.add(features, captions)

    def add(self, features: Dataset | Sequence[Dataset], captions: Dataset) -> None:
        """Take in the same split of another dataset, of the same encoder; raises as the class."""
        views = [features] if isinstance(features, Dataset) else features
        self.parts.append(PairRows(views, captions, self._split, self._seed))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def texts(self, pictures: np.ndarray) -> list[list[str]]:
        """The kept captions of each of these pictures."""
        return self._each(pictures, lambda part, numbers, _: part.texts(numbers))

    def all_texts(self) -> Iterator[str]:
        """The kept captions of all pictures."""
        return chain.from_iterable(part.all_texts() for part in self.parts)

    def tokens(
        self, pictures: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None
    ) -> torch.Tensor:
        """Image tokens as cached, before `ln_vision`.

        Args:
            pictures: int64[B], their numbers; one at least.
            epochs: int64[B], in which each shows one of its views; None is for evaluation.

        Returns:
            float16 or bfloat16 [B, P, C]
        """

        def wanted(part: PairRows, numbers: np.ndarray, at: np.ndarray) -> list[Wanted]:
            return part.wanted(numbers, None if epochs is None else epochs[at])

        rows = self._each(np.asarray(pictures), wanted)
        shard, _ = rows[0]
        tokens = self._memory.take((len(rows), *shard.shape), shard.dtype)
        gather(rows, tokens.numpy())
        return _as_stored(tokens)

    def batch(
        self, pictures: np.ndarray, draw: np.ndarray, epochs: np.ndarray | None = None
    ) -> Batch:
        """A batch of these pictures.

        Args:
            pictures: int64[B], their numbers.
            draw: float64[B] in [0, 1), draws one of the captions of each.
            epochs: as in `tokens`.
        """
        texts = self._drawn(pictures, draw)
        return Batch(
            tokens=self.tokens(pictures, epochs),
            texts=texts,
            picture=torch.from_numpy(pictures.astype(np.int64)),
            caption=torch.tensor([_key(text) for text in texts]),
        )

    def named(self, pictures: np.ndarray, draw: np.ndarray) -> list[dict[str, str]]:
        """`uid` (hexadecimal) and `caption` of the pairs that `batch` gives; for people."""
        uids = self._each(pictures, lambda part, numbers, _: part.uids(numbers))
        return [
            {"uid": uid.hex(), "caption": text}
            for uid, text in zip(uids, self._drawn(pictures, draw), strict=True)
        ]

    def _drawn(self, pictures: np.ndarray, draw: np.ndarray) -> list[str]:
        return self._each(pictures, lambda part, numbers, at: part.drawn(numbers, draw[at]))

    def _each(
        self,
        pictures: np.ndarray,
        ask: Callable[[PairRows, np.ndarray, np.ndarray], Sequence[Made]],
    ) -> list[Made]:
        """What each picture's dataset says of it.

        Args:
            pictures: int64[B], their numbers.
            ask: for a dataset, the numbers of some pictures in it, and where they are among
                `pictures`, what is said of each.
        """
        found: dict[int, Made] = {}
        first = 0
        for part in self.parts:
            at = np.flatnonzero((pictures >= first) & (pictures < first + len(part)))
            found.update(zip(at.tolist(), ask(part, pictures[at] - first, at), strict=True))
            first += len(part)
        return [found[at] for at in range(len(pictures))]


class BatchMemory:
    """Memory for one batch after another, used again as soon as no tensor lies in it any longer.

    New memory has no pages until it is written to, which takes as long as the copying itself.
    """

    def __init__(self, *, pin: bool = False) -> None:
        self._pin = pin
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
        """An uninitialised tensor of float16 or uint16."""
        kind = torch.float16 if dtype == np.float16 else torch.uint16
        if self._pin:  # PyTorch does the same here, and waits for copies to the GPU besides
            return torch.empty(shape, dtype=kind, pin_memory=True)
        num_bytes = math.prod(shape) * dtype.itemsize
        fitting = [at for at, memory in enumerate(self._free) if memory.nbytes == num_bytes]
        memory = self._free.pop(fitting[-1]) if fitting else np.empty(num_bytes, np.uint8)
        lent = memory.view(dtype).reshape(shape)
        # The tensor's storage owns `lent`, so this is when the last view and the last graph go.
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)


def as_tensor(tokens: np.ndarray) -> torch.Tensor:
    """Stored image tokens as float16 or, where they are its bits, bfloat16; without a copy."""
    return _as_stored(torch.from_numpy(tokens))


def _as_stored(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.view(torch.bfloat16) if tokens.dtype == torch.uint16 else tokens


def ahead(make: Callable[[int], Made], steps: range) -> Iterator[Made]:
    """What `make` gives for each step, the next being made in the background meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(make, step) for step in steps[:1]]
        for step in steps:
            following = [thread.submit(make, step + 1)] if step + 1 in steps else []
            yield coming[0].result()
            coming = following


def _key(text: str) -> int:
    """63 bits of a hash: equal captions meet, others practically never."""
    return int.from_bytes(hashlib.sha256(text.casefold().encode()).digest()[:8], "big") >> 1
