"""What is made of files, made anew when they change: a takedown acts on a running server."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pipeline.errors import ViaductError
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""So old is what is known of the files, at most."""

Made = TypeVar("Made")


class Watched(Generic[Made]):
    """A value that is made of files, and made anew before it is used if they have changed.

    Args:
        files: by folder and name; they may be absent.
        make: makes the value.
        every_s: how often the files are looked at, at most.
    """

    def __init__(
        self,
        files: Sequence[tuple[Folder, str]],
        make: Callable[[], Made],
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._files, self._make, self._every_s = files, make, every_s
        self._lock = threading.Lock()
        self._looked, self._seen = time.monotonic(), self._stamps()
        self._value = make()

    def get(self) -> Made:
        """The value; what it was where it cannot be made anew, which is logged."""
        with self._lock:
            if time.monotonic() - self._looked >= self._every_s:
                self._look()
            return self._value

    def _look(self) -> None:
        self._looked, stamps = time.monotonic(), self._stamps()
        if stamps == self._seen:
            return
        try:
            self._value = self._make()
            self._seen = stamps
        except ViaductError:
            logger.exception("changed, but cannot be read; what was there before is served on")

    def _stamps(self) -> list[tuple[int | None, int | None]]:
        infos = [folder.fs.get_file_info(f"{folder.path}/{name}") for folder, name in self._files]
        return [(info.size, info.mtime_ns) for info in infos]
