import asyncio
import threading

import pytest

from jobs.serve.batching import Batcher


def test_those_that_wait_are_answered_together_in_order():
    first, free = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def answer(queries):
        batches.append(list(queries))
        first.set()
        assert free.wait(20)
        return [-query for query in queries]

    async def ask_all():
        batcher = Batcher(answer, 4)
        asked = [asyncio.create_task(batcher.ask(0))]
        await asyncio.to_thread(first.wait, 20)
        asked += [asyncio.create_task(batcher.ask(n)) for n in range(1, 8)]
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    assert batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert [answer for answer, _ in answers] == [0, -1, -2, -3, -4, -5, -6, -7]
    assert [size for _, size in answers] == [1, 4, 4, 4, 4, 3, 3, 3]


def test_the_fault_of_one_is_not_that_of_the_others():
    def answer(queries):
        if 3 in queries:
            raise ValueError("three")
        return list(queries)

    async def ask_all():
        batcher = Batcher(answer, 8)
        return await asyncio.gather(*map(batcher.ask, range(5)), return_exceptions=True)

    answers = asyncio.run(ask_all())
    assert [one[0] for one in answers if isinstance(one, tuple)] == [0, 1, 2, 4]
    assert str(answers[3]) == "three"


def test_whoever_went_away_is_not_answered():
    begun, free = threading.Event(), threading.Event()
    seen: list[int] = []

    def answer(queries):
        seen.extend(queries)
        begun.set()
        assert free.wait(20)
        return list(queries)

    async def leave():
        batcher = Batcher(answer, 8)
        stays = asyncio.create_task(batcher.ask(0))
        await asyncio.to_thread(begun.wait, 20)
        leaves, other = (asyncio.create_task(batcher.ask(n)) for n in (1, 2))
        await asyncio.sleep(0)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        free.set()
        await asyncio.gather(stays, other)

    asyncio.run(leave())
    assert seen == [0, 2]
