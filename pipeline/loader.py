"""Batches for training: image tokens from cached features, captions beside them.

Features are memory-mapped, and a batch copies its rows out of them once. Pictures are never opened.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from pipeline.captions import kept_texts
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.token_reader import TokenReader, has_tokens

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

    Raises:
        ConfigError: the two do not lie side by side, or the split is empty.
    """

    def __init__(self, features: Dataset, captions: Dataset, split: str) -> None:
        check_side_by_side(features, captions)
        self._tokens, self._captions = TokenReader(features), captions
        self.num_without_caption = 0
        """Pictures of the split that have no kept caption."""
        places, texts = [], []
        for number in captions.records:
            shard = captions.shard(number)
            table = shard.table.select(["captions", "split"])
            live = np.asarray(shard.live) & has_tokens(features.shard(number))
            rows = np.flatnonzero(live & (table.column("split").to_numpy() == split))
            column = table.column("captions").take(pa.array(rows, pa.int64()))
            kept = [[text for _, text in its] for its in kept_texts(column)]
            places += [(number, row) for row, its in zip(rows.tolist(), kept, strict=True) if its]
            texts += [its for its in kept if its]
            self.num_without_caption += kept.count([])
        if not places:
            raise ConfigError(
                f"{captions.folder}: its split {split!r} has no picture with a kept caption"
            )
        self.places = places
        """Shard and row of each picture."""
        self.texts = texts
        """The kept captions of each picture."""

    def __len__(self) -> int:
        return len(self.places)

    def tokens(self, pictures: Sequence[int]) -> torch.Tensor:
        """float16 or bfloat16 [B, P, C]: image tokens as cached, before `ln_vision`."""
        return as_tensor(self._tokens.read([self.places[n] for n in pictures]))

    def batch(self, pictures: np.ndarray, draw: np.ndarray) -> Batch:
        """A batch of these pictures.

        Args:
            pictures: int64[B], their numbers.
            draw: float64[B] in [0, 1), draws one of the captions of each.
        """
        texts = self._drawn(pictures, draw)
        return Batch(
            tokens=self.tokens(pictures.tolist()),
            texts=texts,
            picture=torch.from_numpy(pictures.astype(np.int64)),
            caption=torch.tensor([_key(text) for text in texts]),
        )

    def named(self, pictures: np.ndarray, draw: np.ndarray) -> list[dict[str, str]]:
        """`uid` (hexadecimal) and `caption` of the pairs that `batch` gives; for people."""
        places = [self.places[picture] for picture in pictures.tolist()]
        uids = [self._captions.shard(shard).table.column("uid")[row] for shard, row in places]
        texts = self._drawn(pictures, draw)
        return [
            {"uid": uid.as_py().hex(), "caption": text}
            for uid, text in zip(uids, texts, strict=True)
        ]

    def _drawn(self, pictures: np.ndarray, draw: np.ndarray) -> list[str]:
        """One of the captions of each picture."""
        return [
            self.texts[picture][int(share * len(self.texts[picture]))]
            for picture, share in zip(pictures.tolist(), draw.tolist(), strict=True)
        ]


def as_tensor(tokens: np.ndarray) -> torch.Tensor:
    """Stored image tokens as float16 or, where they are its bits, bfloat16; without a copy."""
    tensor = torch.from_numpy(tokens)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


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
