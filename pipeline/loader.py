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
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.dataset import Dataset
from pipeline.pair_rows import PairRows
from pipeline.token_reader import TokenReader

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
    """The pictures of one split that have image tokens and a kept caption.

    Args:
        features: dataset of kind `features`.
        captions: a dataset beside it that has captions and split (`pairs`).
        split: `train`, `validation` or `test`.
        pin: gather tokens where a GPU fetches them from.

    Raises:
        ConfigError: the two do not lie side by side, or the split is empty.
    """

    def __init__(
        self, features: Dataset, captions: Dataset, split: str, *, pin: bool = False
    ) -> None:
        self.rows = PairRows(features, captions, split)
        self._tokens = TokenReader(features)
        self._memory = BatchMemory(pin=pin)

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, pictures: Sequence[int] | np.ndarray) -> torch.Tensor:
        """float16 or bfloat16 [B, P, C]: image tokens as cached, before `ln_vision`."""
        places = self.rows.places(np.asarray(pictures))
        shard = self._tokens.shard(places[0][0])
        tokens = self._memory.take((len(places), *shard.shape), shard.dtype)
        self._tokens.gather(places, tokens.numpy())
        return _as_stored(tokens)

    def batch(self, pictures: np.ndarray, draw: np.ndarray) -> Batch:
        """A batch of these pictures.

        Args:
            pictures: int64[B], their numbers.
            draw: float64[B] in [0, 1), draws one of the captions of each.
        """
        texts = self.rows.drawn(pictures, draw)
        return Batch(
            tokens=self.tokens(pictures),
            texts=texts,
            picture=torch.from_numpy(pictures.astype(np.int64)),
            caption=torch.tensor([_key(text) for text in texts]),
        )


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
