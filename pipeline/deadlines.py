"""Deadlines: how long peers may keep a thread, and a shard's peers its worker.

Two bounds hold at once: that of the picture that a thread fetches, and that of the shard which the
picture belongs to. Whatever waits asks here how long it may.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class ShardTime:
    """How long a shard may keep its worker waiting; read by all threads that fetch for it.

    It stands still while the worker decodes: slow peers cost it, a slow machine does not.
    """

    def __init__(self, seconds: float) -> None:
        # What was left at a moment; the moment is None while time stands still. One attribute,
        # because other threads must see both change at once.
        self._left: tuple[float, float | None] = (seconds, time.monotonic())

    def remaining_s(self) -> float:
        left, since = self._left
        return left if since is None else left - (time.monotonic() - since)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Time within does not count; for one thread, the one that decodes."""
        self._left = (self.remaining_s(), None)
        try:
            yield
        finally:
            self._left = (self._left[0], time.monotonic())


_FOR_EVER = ShardTime(math.inf)
_picture_end: ContextVar[float] = ContextVar("picture_end", default=math.inf)
_shard_time: ContextVar[ShardTime] = ContextVar("shard_time", default=_FOR_EVER)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """All that this thread does on guarded connections within ends after so many seconds."""
    token = _picture_end.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _picture_end.reset(token)


@contextmanager
def on_time_of(shard: ShardTime) -> Iterator[None]:
    """What this thread does within also ends with the shard's time."""
    token = _shard_time.set(shard)
    try:
        yield
    finally:
        _shard_time.reset(token)


def postpone(seconds: float) -> None:
    """Move this thread's own deadline, as after a wait that was not for a peer."""
    _picture_end.set(_picture_end.get() + seconds)


def shard_remaining_s() -> float:
    """Seconds left of the shard's time; infinite where there is none."""
    return _shard_time.get().remaining_s()


def remaining_s() -> float:
    """Seconds left until the nearer deadline; infinite where none was set."""
    return min(_picture_end.get() - time.monotonic(), shard_remaining_s())


def at_most(seconds: float | None) -> float | None:
    """`seconds`, or what is left until the deadline; None is for ever.

    Raises:
        TimeoutError: nothing is left.
    """
    left = remaining_s()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    if left == math.inf:
        return seconds
    return left if seconds is None else min(seconds, left)
