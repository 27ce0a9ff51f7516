"""A replica: holds the models and the index, and answers queries in batches."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from indexes.retrieval import FoundPicture, RetrievalIndex
from indexes.threads import use_threads
from jobs.search_models import CheckpointEmbedder, token_source
from jobs.search_places import Places, PlacesConfig
from jobs.search_queries import Find, Query, Searcher, as_json
from jobs.serve.batching import Batcher
from jobs.serve.watching import Watched
from pipeline.pictures import PictureConfig, PictureFault, decode_stored, store

_DECODED_AT_ONCE = 2
"""Pictures of clients: of 25 million pixels each takes some 0.2 GB."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A search as it goes from the server to a replica."""

    text: str | None = None
    picture: bytes | None = None
    """A picture file of the client's, not looked at yet."""
    like: FoundPicture | None = None
    """A picture of the index."""
    k: int
    rerank: int = 0
    find: Find = "pictures"

    @property
    def is_heavy(self) -> bool:
        """Whether there is more to do than to read a text and to search."""
        return bool(self.picture is not None or self.like is not None or self.rerank)


@dataclass(frozen=True)
class Reply:
    """What a replica found."""

    index: str
    """Digest of the index that was searched."""
    results: list[dict[str, Any]]
    num_queries: int
    """Answered together, this one among them."""
    seconds: float
    """From its arrival at the replica."""


@dataclass(frozen=True)
class Refusal:
    """Why a replica did not search: something the client can mend."""

    error: str


@dataclass(frozen=True, kw_only=True)
class ReplicaWork:
    """What a replica is made of; it is pickled to its process."""

    index: str
    places: PlacesConfig
    pictures: PictureConfig
    """How pictures of clients are read."""
    max_batch: int
    max_heavy_batch: int
    threads: int
    device: str


class Replica:
    """Answers searches out of an index.

    Searches by words are one lane, all others another: whoever shows a picture, or has candidates
    looked at again, holds up nobody who only writes words.
    """

    def __init__(self, work: ReplicaWork) -> None:
        torch.set_num_threads(work.threads)
        use_threads(work.threads)
        self._work = work
        index = RetrievalIndex.open(work.index)
        self._has_captions = index.caption_vectors is not None
        checkpoint = Places(index, work.places).open_checkpoint()
        embedder = CheckpointEmbedder(checkpoint, work.places.weights, work.device)
        self._searcher = Watched(index.changing_files, lambda: _open_searcher(work, embedder))
        self._words = Batcher(self._answers, work.max_batch)
        self._heavy = Batcher(self._answers, work.max_heavy_batch)
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._warm_up()

    async def __call__(self, asked: Asked) -> Reply | Refusal:
        """Search; raises what is the server's fault."""
        begun = time.perf_counter()
        try:
            query = await self._query(asked)
        except PictureFault as fault:
            return Refusal(f"picture: cannot be used ({fault})")
        if query.find == "captions" and not self._has_captions:
            return Refusal("find: no captions are indexed here")
        lane = self._heavy if asked.is_heavy else self._words
        (index, results), num_queries = await lane.ask(query)
        return Reply(index, results, num_queries, time.perf_counter() - begun)

    async def _query(self, asked: Asked) -> Query:
        picture = None
        if asked.picture is not None:
            async with self._decoding:
                picture = await asyncio.to_thread(_decode, asked.picture, self._work.pictures)
        return Query(
            text=asked.text,
            picture=picture,
            like=asked.like,
            k=asked.k,
            rerank=asked.rerank,
            find=asked.find,
        )

    def _answers(self, queries: Sequence[Query]) -> list[tuple[str, list[dict[str, Any]]]]:
        """The digest of the index that was searched, and what was found, of each query."""
        searcher = self._searcher.get()
        # The server may have seen an addition, and a picture in it, that is news here.
        parts = [query.like.part for query in queries if query.like is not None]
        if max(parts, default=0) >= len(searcher.index.parts):
            searcher = self._searcher.get(now=True)
        index = searcher.index
        return [
            (index.digest, as_json(answer, with_part=index.has_additions))
            for answer in searcher.answers(queries)
        ]

    def _warm_up(self) -> None:
        """Load the models, so that the first client does not wait for it."""
        searcher, grey = self._searcher.get(), Image.new("RGB", (64, 64), "grey")
        searcher.answers([Query(text="warm"), Query(text="warm", picture=grey, k=1)])


def _decode(data: bytes, config: PictureConfig) -> Image.Image:
    """A client's picture as its stored row would show it; raises PictureFault."""
    return decode_stored(store(data, config).jpeg)


def _open_searcher(work: ReplicaWork, embedder: CheckpointEmbedder) -> Searcher:
    index = RetrievalIndex.open(work.index)
    places = Places(index, work.places)
    features = places.open_features(embedder.checkpoint)
    return Searcher(index, embedder, token_source(features, places.open_pairs(), embedder))
