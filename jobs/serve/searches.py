"""Searches under way, within bounds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from indexes.retrieval import FoundPicture
from jobs.serve.catalogue import Catalogue
from jobs.serve.limits import LimitsConfig
from jobs.serve.metrics import Metrics
from jobs.serve.replicas import Asked, Refusal, Reply
from jobs.serve.search_request import Refused, SearchRequest
from jobs.serve.watching import Watched

Answer = Callable[[Asked], Awaitable[Reply | Refusal]]
"""Whoever answers searches: Ray Serve's replicas."""


class Searches:
    """Hands searches to whoever answers them, not too many at once.

    Args:
        answer: answers them; raises where it cannot.
        catalogue: of the pictures that are searched.
        limits: how many at once, and for how long.
        metrics: where they are counted.
    """

    def __init__(
        self, answer: Answer, catalogue: Watched[Catalogue], limits: LimitsConfig, metrics: Metrics
    ) -> None:
        self._answer, self._catalogue, self._metrics = answer, catalogue, metrics
        self._timeout_s = limits.search_timeout_s
        self._under_way = {"all": 0, "heavy": 0}
        self._most = {"all": limits.max_searches, "heavy": limits.max_heavy}

    async def search(self, search: SearchRequest, picture: bytes | None) -> Reply:
        """Raises Refused, or whatever a replica raises that fails."""
        like = None if search.uid is None else await asyncio.to_thread(self._like, search.uid)
        asked = Asked(
            text=search.text,
            picture=picture,
            like=like,
            k=search.k,
            rerank=search.rerank,
            find=search.find,
        )
        async with self._place("all"), AsyncExitStack() as heavy:
            if asked.is_heavy:
                await heavy.enter_async_context(self._place("heavy"))
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await self._answer(asked)
            except TimeoutError:
                raise Refused(503, "busy: the search took too long", 1) from None
        if isinstance(reply, Refusal):
            raise Refused(422, reply.error)
        self._count(asked, reply)
        return reply

    def _like(self, uid: str) -> FoundPicture:
        found = self._catalogue.get().find(bytes.fromhex(uid))
        if found is None:
            raise Refused(404, f"uid: {uid} is not indexed here")
        return found

    @asynccontextmanager
    async def _place(self, kind: str) -> AsyncIterator[None]:
        if self._under_way[kind] >= self._most[kind]:
            raise Refused(503, "busy: too many searches at once", 1)
        self._under_way[kind] += 1
        self._metrics.searches_under_way.set(self._under_way["all"])
        try:
            yield
        finally:
            self._under_way[kind] -= 1
            self._metrics.searches_under_way.set(self._under_way["all"])

    def _count(self, asked: Asked, reply: Reply) -> None:
        shows = asked.picture is not None or asked.like is not None
        by = "both" if shows and asked.text is not None else "picture" if shows else "text"
        self._metrics.searches.labels(by, asked.find).inc()
        self._metrics.batch_queries.observe(reply.num_queries)
        self._metrics.replica_seconds.observe(reply.seconds)
