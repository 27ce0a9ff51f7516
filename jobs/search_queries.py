"""Queries of all kinds answered together: by words, by picture, by both; pictures or captions.

A text and a picture in one query: each of the picture's Q vectors is moved halfway to the text's,
`normalise(picture + text)`, and the search goes on with these Q vectors. What is found is close to
one thing that the picture shows and to the words at once: the score is, but for the length of that
sum, the cosine with the picture's vector plus the cosine with the text's.

Re-ranking: of the pictures found (or captions), the first are looked at again together with the
text (or picture), as stage 1 does in ITM, and ordered by that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from indexes.retrieval import FoundCaption, FoundPicture, RetrievalIndex
from jobs.search_models import Embedder, TokenSource
from pipeline.captions import normalise
from pipeline.errors import ConfigError

_LOOKED_AT_ONCE = 32
"""Candidates whose tokens are in memory at once: of a ViT-g 46 MB."""

Find = Literal["pictures", "captions"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is searched for: a text, a picture or both.

    Raises:
        ConfigError: it is none of these, or asks for what cannot be.
    """

    text: str | None = None
    picture: Image.Image | None = None
    """RGB, as it would be stored."""
    like: FoundPicture | None = None
    """A picture of the index, in place of `picture`; itself is not found."""
    k: int = 10
    """Results wanted."""
    rerank: int = 0
    """Candidates that are looked at again; 0 leaves them as they are."""
    find: Find = "pictures"

    def __post_init__(self) -> None:
        if self.text is not None and not normalise(self.text):
            raise ConfigError("text: it is empty")
        if self.picture is not None and self.like is not None:
            raise ConfigError("picture: there are two")
        if self.text is None and not self.shows:
            raise ConfigError("text, picture: give a text or a picture to search for")
        if self.k < 1:
            raise ConfigError(f"k: {self.k} is not positive")
        if self.find == "captions" and (self.text is not None or not self.shows):
            raise ConfigError("find: captions are found by a picture alone")
        if self.rerank and self.rerank < self.k:
            raise ConfigError(f"rerank: {self.rerank} is less than k={self.k}")
        if self.rerank and self.find == "pictures" and self.text is None:
            raise ConfigError("rerank: pictures found by a picture have no text to be matched with")

    @property
    def shows(self) -> bool:
        """Whether there is a picture in it."""
        return self.picture is not None or self.like is not None

    @property
    def width(self) -> int:
        """Results that the index is asked for: itself among them where it is in the index."""
        return max(self.k, self.rerank) + (self.like is not None and self.find == "pictures")


@dataclass(frozen=True)
class Ranked:
    """A picture or a caption, in its place."""

    found: FoundPicture | FoundCaption
    match: float | None = None
    """What re-ranking said, by which it stands here; None without."""


@dataclass
class _Open:
    """A query on its way to its answer."""

    query: Query
    tokens: Float[Tensor, "1 P C"] | None = None
    """Of its picture."""
    vectors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """float32[A, E]"""
    answer: list[Ranked] = field(default_factory=list)


class Searcher:
    """Answers queries out of an index.

    Args:
        index: to search.
        embedder: of the checkpoint that made it.
        tokens: of its pictures, for re-ranking and for queries by an indexed picture; None where
            they cannot be had.
    """

    def __init__(
        self, index: RetrievalIndex, embedder: Embedder, tokens: TokenSource | None
    ) -> None:
        self.index, self._embedder, self._tokens = index, embedder, tokens

    def answers(self, queries: Sequence[Query]) -> list[list[Ranked]]:
        """What each query finds, best first; none depends on the others but in its last bits.

        Raises:
            ConfigError: the index has no captions, or tokens are needed that cannot be had.
            DatasetError: a stored picture or its tokens are damaged.
        """
        opened = [_Open(query) for query in queries]
        self._embed(opened)
        self._search(opened)
        for one in opened:
            if one.query.rerank:
                one.answer = self._reranked(one)
            one.answer = one.answer[: one.query.k]
        return [one.answer for one in opened]

    def _embed(self, opened: Sequence[_Open]) -> None:
        texts = [normalise(one.query.text) for one in opened if one.query.text is not None]
        words = iter(self._embedder.texts(texts) if texts else ())
        self._look(opened)
        for one in opened:
            text = None if one.query.text is None else next(words)
            pictures = None
            if one.tokens is not None:
                (pictures,) = self._embedder.pictures(one.tokens)
            one.vectors = query_vectors(text, pictures)

    def _look(self, opened: Sequence[_Open]) -> None:
        """Have the tokens of queries that show a picture."""
        shown = [one for one in opened if one.query.picture is not None]
        pictures = [one.query.picture for one in shown if one.query.picture is not None]
        if pictures:
            for one, tokens in zip(shown, self._embedder.tokens(pictures).split(1), strict=True):
                one.tokens = tokens
        liked = [one for one in opened if one.query.like is not None]
        rows = [one.query.like for one in liked if one.query.like is not None]
        if rows:
            for one, tokens in zip(liked, self._tokens_of(rows).split(1), strict=True):
                one.tokens = tokens

    def _search(self, opened: Sequence[_Open]) -> None:
        captions = [one for one in opened if one.query.find == "captions"]
        pictures = [one for one in opened if one.query.find == "pictures"]
        by_text = [one for one in pictures if not one.query.shows]
        by_picture = [one for one in pictures if one.query.shows]
        self._fill(by_text, lambda vectors, k: self.index.search_texts(vectors[:, 0], k))
        self._fill(by_picture, self.index.search_pictures)
        self._fill(captions, self.index.search_captions)

    def _fill(self, opened: Sequence[_Open], search: Callable[[np.ndarray, int], Any]) -> None:
        """Search for queries of one kind at once, and note what each found."""
        if not opened:
            return
        vectors = np.stack([one.vectors for one in opened])
        width = max(one.query.width for one in opened)
        for one, found in zip(opened, search(vectors, width), strict=True):
            its = [hit for hit in found if not _is_itself(one.query, hit)]
            one.answer = [Ranked(hit) for hit in its[: max(one.query.k, one.query.rerank)]]

    def _reranked(self, one: _Open) -> list[Ranked]:
        """The answer in the order of what is said of it when it is looked at beside the query."""
        matches: list[float] = []
        if one.query.find == "captions" and one.tokens is not None:
            captions = [r.found.text for r in one.answer if isinstance(r.found, FoundCaption)]
            (matches,) = self._embedder.matches(one.tokens, [captions])
        else:
            found = [r.found for r in one.answer if isinstance(r.found, FoundPicture)]
            text = normalise(one.query.text or "")
            for start in range(0, len(found), _LOOKED_AT_ONCE):
                some = found[start : start + _LOOKED_AT_ONCE]
                told = self._embedder.matches(self._tokens_of(some), [[text]] * len(some))
                matches += [match for (match,) in told]
        # Of equal matches the closer one comes first: sorting keeps their order.
        order = sorted(range(len(matches)), key=lambda place: -matches[place])
        return [replace(one.answer[place], match=matches[place]) for place in order]

    def _tokens_of(self, pictures: Sequence[FoundPicture]) -> Float[Tensor, "B P C"]:
        if self._tokens is None:
            raise ConfigError(
                f"{self.index.folder}: the image tokens of its pictures are needed; "
                "name their features with --features, or their pairs with --pairs"
            )
        return self._tokens(pictures)


def query_vectors(text: np.ndarray | None, picture: np.ndarray | None) -> np.ndarray:
    """The vectors of a query.

    Args:
        text: float32[E], or None.
        picture: float32[Q, E], or None; not both are None.

    Returns:
        float32[A, E], L2-normalised: the text's one, the picture's Q, or Q halfway between.
    """
    if picture is None:
        if text is None:
            raise ValueError("neither a text nor a picture")
        return text[None]
    if text is None:
        return picture
    both = picture + text
    lengths = np.linalg.norm(both, axis=1, keepdims=True)
    # Where the two point away from each other there is no halfway: the picture's own stays.
    return np.where(lengths > 1e-3, both / np.maximum(lengths, 1e-3), picture)


def _is_itself(query: Query, hit: FoundPicture | FoundCaption) -> bool:
    return query.like is not None and isinstance(hit, FoundPicture) and hit.uid == query.like.uid


def as_json(answer: Sequence[Ranked], *, with_part: bool = False) -> list[dict[str, Any]]:
    """An answer as results.json and the server tell it.

    Args:
        answer: best first.
        with_part: tell of which part of the index a picture is, for there are several.
    """
    return [
        {"rank": rank, "score": round(one.found.score, 6)}
        | ({} if one.match is None else {"match": round(one.match, 6)})
        | _told(one.found)
        | ({"part": one.found.part} if with_part and isinstance(one.found, FoundPicture) else {})
        for rank, one in enumerate(answer, 1)
    ]


def _told(found: FoundPicture | FoundCaption) -> dict[str, Any]:
    if isinstance(found, FoundCaption):
        return {"uid": found.uid.hex(), "text": found.text}
    return {
        "uid": found.uid.hex(),
        "url": found.url,
        "captions": found.captions,
        "shard": found.shard,
        "row": found.row,
    }
