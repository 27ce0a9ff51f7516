"""Queries that wait are answered together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Batcher(Generic[Asked, Answered]):
    """Hands all that waits to a function whenever it is free, in a thread of its own.

    A query that comes alone is answered at once. Ray Serve's own batching waits some milliseconds
    for others that may come, and does not gather those that come while a batch is being answered.

    Args:
        answer: queries to their answers, in order.
        max_batch: queries at once, at most.
    """

    def __init__(
        self, answer: Callable[[Sequence[Asked]], Sequence[Answered]], max_batch: int
    ) -> None:
        self._answer, self._max_batch = answer, max_batch
        self._waiting: list[tuple[Asked, asyncio.Future[tuple[Answered, int]]]] = []
        self._thread = ThreadPoolExecutor(1)
        self._work: asyncio.Task[None] | None = None

    async def ask(self, query: Asked) -> tuple[Answered, int]:
        """The answer, and how many queries were answered with it.

        Raises:
            Exception: whatever the function raises for this query alone.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((query, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        return await future

    async def _answer_all(self) -> None:
        while self._waiting:
            some, self._waiting = (
                self._waiting[: self._max_batch],
                self._waiting[self._max_batch :],
            )
            some = [(query, future) for query, future in some if not future.done()]
            if some:
                await self._answer_some(some)

    async def _answer_some(
        self, some: list[tuple[Asked, asyncio.Future[tuple[Answered, int]]]]
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(
                self._thread, self._answer, [query for query, _ in some]
            )
        except Exception as error:
            if len(some) == 1:
                ((_, future),) = some
                if not future.done():
                    future.set_exception(error)
                return
            for one in some:  # the fault of one is not that of the others
                await self._answer_some([one])
            return
        for (_, future), answer in zip(some, answers, strict=True):
            if not future.done():
                future.set_result((answer, len(some)))
