"""What turns queries into vectors, and what re-ranking looks at: the tokens of pictures found."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from indexes.retrieval import FoundPicture
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_encoder_of
from model.checkpoint_models import load_stage1
from model.pretrained.encoders import VisionEncoder
from model.reranking import rerank_scores
from model.stage1 import Stage1
from pipeline.dataset import Dataset, Shard, decode_row
from pipeline.errors import DatasetError
from pipeline.loader import as_tensor
from pipeline.token_reader import TokenReader

_AT_ONCE = 16
"""Pictures that are encoded, or looked at again, at once; bounds the memory."""


class Embedder(Protocol):
    """What turns texts and pictures into vectors, and says how well the two match."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, E], L2-normalised."""

    def tokens(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "B P C"]:
        """Image tokens of RGB pictures, as a cache would hold them."""

    def pictures(self, tokens: Float[Tensor, "B P C"]) -> np.ndarray:
        """float32[B, Q, E], L2-normalised."""

    def matches(
        self, tokens: Float[Tensor, "B P C"], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """How well each text fits its picture when both are looked at together: ITM's logit plus
        the cosine (`model.reranking`)."""


@dataclass(frozen=True)
class CheckpointEmbedder:
    """Embeds with a stage-1 checkpoint; model and encoder are loaded when they are needed."""

    checkpoint: Checkpoint
    weights: str | None = None
    """Of the vision encoder, see `load_encoder_of`."""
    device: str = "cpu"

    @cached_property
    def stage1(self) -> Stage1:
        return load_stage1(self.checkpoint, self.device)

    @cached_property
    def encoder(self) -> VisionEncoder:
        return load_encoder_of(self.checkpoint, self.weights).to(self.device)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.stage1.embed_texts(list(texts)).cpu().numpy()

    def tokens(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "B P C"]:
        transform = self.encoder.transform()
        found = []
        for start in range(0, len(pictures), _AT_ONCE):
            some = [transform(picture) for picture in pictures[start : start + _AT_ONCE]]
            found.append(self.encoder(torch.stack(some).to(self.device)))
        return torch.cat(found)

    def pictures(self, tokens: Float[Tensor, "B P C"]) -> np.ndarray:
        return self.stage1.embed_pictures(tokens.to(self.device)).cpu().numpy()

    def matches(
        self, tokens: Float[Tensor, "B P C"], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return [its.tolist() for its in rerank_scores(self.stage1, tokens, texts)]


class TokenSource(Protocol):
    """Where the image tokens of indexed pictures come from."""

    def __call__(self, pictures: Sequence[FoundPicture]) -> Float[Tensor, "B P C"]:
        """Tokens of at least one picture.

        Raises:
            DatasetError: a row is not there, or another picture's.
        """


class CachedTokens:
    """Tokens out of a dataset of features.

    Args:
        features: beside the pairs that were indexed; of the checkpoint's encoder.
    """

    def __init__(self, features: Dataset) -> None:
        self._features = features
        self._reader = TokenReader(features)
        self._shard = lru_cache(1024)(features.shard)

    def __call__(self, pictures: Sequence[FoundPicture]) -> Float[Tensor, "B P C"]:
        for picture in pictures:
            _check_row(self._features, self._shard(picture.shard), picture, "tokens")
        return as_tensor(self._reader.read([(one.shard, one.row) for one in pictures]))


class EncodedTokens:
    """Tokens of stored pictures, encoded when they are asked for.

    Args:
        pairs: that were indexed.
        embedder: encodes them.
    """

    def __init__(self, pairs: Dataset, embedder: Embedder) -> None:
        self._pairs, self._embedder = pairs, embedder
        self._shard = lru_cache(1024)(pairs.shard)

    def __call__(self, pictures: Sequence[FoundPicture]) -> Float[Tensor, "B P C"]:
        opened = []
        for picture in pictures:
            shard = self._shard(picture.shard)
            _check_row(self._pairs, shard, picture, "picture")
            opened.append(decode_row(shard, picture.row))
        return self._embedder.tokens(opened)


class TokensOfParts:
    """Tokens of an index with additions.

    Args:
        parts: where those of each part come from, in order.
    """

    def __init__(self, parts: Sequence[TokenSource]) -> None:
        self._parts = tuple(parts)

    def __call__(self, pictures: Sequence[FoundPicture]) -> Float[Tensor, "B P C"]:
        by_part = sorted(range(len(pictures)), key=lambda place: pictures[place].part)
        found = []
        for part, places in groupby(by_part, lambda place: pictures[place].part):
            # One part's may be cached in half precision, and another's made on a GPU.
            found.append(self._parts[part]([pictures[place] for place in places]).cpu())
        return torch.cat(found)[np.argsort(by_part)]


def _check_row(dataset: Dataset, shard: Shard, picture: FoundPicture, column: str) -> None:
    """Raises DatasetError unless the row is this picture's, with something in the column."""
    table = shard.table.slice(picture.row, 1)
    uid, name = table.column("uid").to_pylist(), f"{dataset.folder}: shard {picture.shard:05d}"
    if uid != [picture.uid]:
        raise DatasetError(f"{name}: row {picture.row} is not picture {picture.uid.hex()}")
    if table.column(column).null_count:
        raise DatasetError(f"{name}: row {picture.row} has no {column} any more")


def token_source(
    features: Sequence[Dataset | None], pairs: Sequence[Dataset], embedder: Embedder
) -> TokenSource:
    """Cached tokens where there are features, else those of the stored pictures.

    Args:
        features: of each part of an index, or None.
        pairs: of each part; none where all have features.
        embedder: encodes pictures.
    """
    parts: list[TokenSource] = [
        EncodedTokens(pairs[part], embedder) if its is None else CachedTokens(its)
        for part, its in enumerate(features)
    ]
    return parts[0] if len(parts) == 1 else TokensOfParts(parts)
