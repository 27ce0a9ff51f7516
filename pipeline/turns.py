"""Turns: which row a free thread fetches next, and how many threads may ask one host at once.

A host that is slow must hold neither the rows of others nor more threads than it is allowed.
"""

import heapq
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.deadlines import shard_remaining_s


class RowQueue:
    """Hands out rows to threads: first those of the host that the fewest threads are busy with.

    Among equals the source's order counts. So rows of a slow host wait behind all others, while
    a single host is still asked by as many threads as it may be.
    """

    def __init__(self, hosts: Sequence[str], per_host: int) -> None:
        """
        Args:
            hosts: of each row; empty where there is none, and no bound.
            per_host: threads at most that are busy with rows of one host, from when they take a
                row until they are done with it.
        """
        self._per_host = per_host
        self._rows: defaultdict[str, deque[int]] = defaultdict(deque)
        for row, host in enumerate(hosts):
            self._rows[host].append(row)
        self._busy: Counter[str] = Counter()
        self._changed = threading.Condition()
        # (threads busy with it, its first row, host). A change adds an entry; those that tell
        # of an earlier state are passed over when they come up.
        self._order = [(0, rows[0], host) for host, rows in self._rows.items()]
        heapq.heapify(self._order)

    @contextmanager
    def next(self) -> Iterator[int]:
        """The row to fetch next, the caller's until the block ends; waits until there is one.

        To be called once a row: there must be one left.
        """
        with self._changed:
            while (host := self._next_host()) is None:
                self._changed.wait()
            row = self._rows[host].popleft()
            self._change(host, 1)
        try:
            yield row
        finally:
            with self._changed:
                self._change(host, -1)
                self._changed.notify()

    def _next_host(self) -> str | None:
        while self._order:
            busy, row, host = heapq.heappop(self._order)
            rows = self._rows[host]
            if busy == self._busy[host] and rows and rows[0] == row:
                return host
        return None

    def _change(self, host: str, by: int) -> None:
        self._busy[host] += by
        if self._rows[host] and (not host or self._busy[host] < self._per_host):
            heapq.heappush(self._order, (self._busy[host], self._rows[host][0], host))


class Turns:
    """Lets at most `per_host` threads ask one host at once; the others wait for their turn.

    `RowQueue` knows a row's first host; redirects lead to any.
    """

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._asking: Counter[str] = Counter()  # hosts that are being asked, and no others
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, host: str) -> Iterator[float]:
        """Waits for a turn, which is the caller's until the block ends; gives the seconds waited.

        A wait is as long as those who have their turn take; that is theirs to bound.

        Raises:
            TimeoutError: the shard's time is over.
        """
        begun = time.monotonic()
        with self._changed:
            while self._asking[host] >= self._per_host:
                left = shard_remaining_s()
                if left <= 0:
                    raise TimeoutError("the shard's time is over")
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            self._asking[host] += 1
        try:
            yield time.monotonic() - begun
        finally:
            with self._changed:
                self._asking[host] -= 1
                if not self._asking[host]:
                    del self._asking[host]
                self._changed.notify_all()
