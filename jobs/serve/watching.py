"""What is made of files, made anew when they change: takedowns and additions act on a running
server."""

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

Stamp = tuple[int | None, int | None]
"""Size of a file, and when it was written."""

Made = TypeVar("Made")
Files = Sequence[tuple[Folder, str]]
"""By folder and name; they may be absent."""


class Watched(Generic[Made]):
    """A value that is made of files, and made anew before it is used if they have changed.

    Args:
        files: that it is made of.
        make: makes the value.
        every_s: how often the files are looked at, at most.
        files_of: the files that a value was made of, where they change with it.
    """

    def __init__(
        self,
        files: Files,
        make: Callable[[], Made],
        every_s: float = LOOK_EVERY_S,
        files_of: Callable[[Made], Files] | None = None,
    ) -> None:
        self._files, self._make, self._every_s = list(files), make, every_s
        self._files_of = files_of or (lambda value: files)
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._value, self._seen = self._made()

    def get(self, *, now: bool = False) -> Made:
        """The value; what it was where it cannot be made anew, which is logged.

        Args:
            now: look at the files, however lately that was done.
        """
        with self._lock:
            if now or time.monotonic() - self._looked >= self._every_s:
                self._look()
            return self._value

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._stamps() == self._seen:
            return
        try:
            self._value, self._seen = self._made()
        except ViaductError:
            logger.exception("changed, but cannot be read; what was there before is served on")

    def _made(self) -> tuple[Made, list[Stamp]]:
        """The value made anew, and how its files were before they were read."""
        stamps, value = self._stamps(), self._make()
        files = list(self._files_of(value))
        if files != self._files:
            self._files = files
            stamps, value = self._stamps(), self._make()
        return value, stamps

    def _stamps(self) -> list[Stamp]:
        infos = [folder.fs.get_file_info(f"{folder.path}/{name}") for folder, name in self._files]
        return [(info.size, info.mtime_ns) for info in infos]
