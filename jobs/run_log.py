"""run.json: the runs of a job in one folder, written as they go and read again."""

import contextlib
import datetime
import platform
import resource
import socket
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from pipeline.claim import Claim
from pipeline.errors import DatasetError
from pipeline.storage import Folder

RUN_FILE = "run.json"

_WRITE_EVERY_S = 5.0

_PACKAGES = ("viaduct", "ray", "pyarrow", "numpy", "pillow", "torch", "timm", "img2dataset")


class RunLog:
    """Writes run.json: when, where, how long, how often tried. Never part of a digest.

    Args:
        claim: on the folder; nothing is written once it is lost.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._earlier = runs_of(claim.folder)
        self._begun = time.monotonic()
        self._run: dict[str, Any] = {
            "command": sys.argv,
            "started": _now(),
            "ended": None,
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "phases": [],
        }
        self.write()

    @contextlib.contextmanager
    def phase(
        self, name: str, folder: Folder | None = None, **known: Any
    ) -> Iterator[dict[str, Any]]:
        """Log one part of the run; the caller may add fields to what it gets.

        Args:
            name: of the part.
            folder: that it fills, at or below the run's own; None where it fills none by shards.
            known: fields that are known as it begins, such as the number of `shards`.
        """
        phase: dict[str, Any] = {"phase": name, "began": _now(), **known}
        if folder is not None:
            phase["folder"] = folder.path.removeprefix(self.claim.folder.path).strip("/")
        self._run["phases"].append(phase)
        begun = time.monotonic()
        self.write()
        try:
            yield phase
        finally:
            phase["seconds"] = round(time.monotonic() - begun, 3)
            self.write()

    def told(self, name: str) -> dict[str, Any]:
        """What was logged of a part of this run, its seconds too; empty where it had no such."""
        return next((its for its in self._run["phases"] if its["phase"] == name), {})

    def end(self) -> None:
        self._run["ended"] = _now()
        self._run["seconds"] = round(time.monotonic() - self._begun, 3)
        self._run["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.write()

    def changed(self) -> None:
        """Have a field that was added in the midst of a phase in the file soon."""
        self._is_changed = True
        self.write_changes()

    def write_changes(self) -> None:
        """The same as `write`, unless nothing changed, or it was just done: to be called often."""
        if self._is_changed and time.monotonic() - self._written >= _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Have what is logged in the file; raises Lost."""
        self._is_changed, self._written = False, time.monotonic()
        self.claim.check()
        self.claim.folder.publish_json(RUN_FILE, {"runs": [*self._earlier, self._run]})


def runs_of(folder: Folder) -> list[dict[str, Any]]:
    """The runs of a job in a folder, the last one at the end; none where there is no run.json.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        return list((folder.read_json(RUN_FILE) or {"runs": []})["runs"])
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{folder}/{RUN_FILE}: field missing or wrong: {error}") from error


def command_line(words: list[str]) -> str:
    """The command of a run as a person would type it: without the program's folder."""
    return " ".join([words[0].rsplit("/", 1)[-1], *words[1:]]) if words else ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
