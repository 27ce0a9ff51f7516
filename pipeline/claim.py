"""One job at a time writes into a folder: its claim refuses a second one, and ends when it dies.

In a local folder the claim is a lock that the operating system frees at once when its holder dies,
however it dies. What works for a dead holder on other machines, such as the ranks of a training,
may outlive it: it finds another token in the lock's file, and writes no more.

An object store has no locks. There it is a lease, `.running.json`: who works here, a random token,
and a count that a thread of the holder raises every RENEW_S. Whoever finds a lease watches it for
WATCH_S. If it changes, somebody works here, and the second job is refused; if it does not, its
holder is dead, and it is taken over. Only changes are looked at and no clock is compared, so
machines may disagree about the time.

What a lease guarantees: while a job renews it, no second one begins. Of several that take over at
once one goes on, for each looks after SETTLE_S whether what it wrote still stands. A holder that
was halted for longer than WATCH_S, with its machine asleep or its network gone, finds another
token in its lease, or none, when it renews it: its main thread is then interrupted, and the job
ends in one line. What it does not: an object store compares nothing as it writes, so a job that
was halted may write for the moment until it looks again. Jobs therefore check their claim before
what cannot be taken back (`dataset.json`, `index.json`, a checkpoint), and shards that two jobs
commit in that moment must agree in every byte (`pipeline.shard`).
"""

import contextlib
import datetime
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ConfigError, DatasetError, first_line
from pipeline.storage import Folder, Locked

logger = logging.getLogger(__name__)

LEASE = ".running.json"
"""Of a folder on an object store."""

LOCK = ".lock"
"""Of a local folder."""

RENEW_S = 5.0
"""Between two renewals of a lease."""

WATCH_S = 15.0
"""A lease that does not change for so long is that of a dead job."""

LOOK_S = 1.0
"""Between two looks at a lease that is watched."""

SETTLE_S = 1.0
"""After which whoever wrote a lease looks whether it stands; longer than a write takes."""

_PAUSE_S = 0.02
"""Until a job that has a lock will have written who it is."""


@dataclass(frozen=True)
class Holder:
    """A job that writes into a folder, as its user knows it."""

    command: str
    host: str
    process: int
    since: str
    """When it began, by its own clock; ISO 8601 in UTC."""

    @staticmethod
    def here(command: str) -> "Holder":
        """This process."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return Holder(command, socket.gethostname(), os.getpid(), now)

    def __str__(self) -> str:
        return f"{self.command}, process {self.process} on {self.host}, since {self.since}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Holder":
        """Raises KeyError, TypeError or ValueError where `value` is none."""
        process = int(value["process"])
        return Holder(str(value["command"]), str(value["host"]), process, str(value["since"]))


class Lost(ConfigError):
    """Another job took a folder over from one that seemed dead, which may write there no more."""


@dataclass(frozen=True)
class Claim:
    """What its holder has of a folder; may be sent to other processes, to be checked there too."""

    folder: Folder
    token: str
    """Of the lease; in a local folder, of the lock's file."""

    def check(self) -> None:
        """Look whether it stands, before something is written that cannot be taken back.

        Raises:
            Lost: another job has taken the folder over, or the lease was removed.
        """
        name, look = (LOCK, _in_lock) if self.folder.is_local else (LEASE, _in_lease)
        found = look(self.folder)
        if found is None:
            raise Lost(
                f"{self.folder}: {name} was removed while this job was running; it ends and "
                "writes nothing more there"
            )
        token, holder = found
        if token != self.token:
            raise Lost(
                f"{self.folder}: was taken over by another job ({holder}) while this one was "
                "halted or cut off; it ends and writes nothing more there"
            )


@contextlib.contextmanager
def claimed(folder: Folder, command: str) -> Iterator[Claim]:
    """Have a folder alone; the holder's main thread is interrupted if the claim is lost.

    Args:
        folder: to write into.
        command: that does, for whom it refuses.

    Raises:
        ConfigError: another job writes there; it is named.
        Lost: another job took the folder over while this one was halted.
    """
    holder, token = Holder.here(command), uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        if folder.is_local:
            note = json.dumps({"token": token, **holder.to_json()})
            try:
                stack.enter_context(folder.locked(LOCK, note=note))
            except Locked as locked:
                first = _noted(folder, locked.note) if locked.note else "it begins just now"
                raise _refusal(folder, first) from None
            yield Claim(folder, token)
        else:
            yield stack.enter_context(_leased(Claim(folder, token), holder))


def holder_of(folder: Folder) -> Holder | None:
    """Who writes into a folder just now; None where nobody does.

    A lease that is there is watched for up to WATCH_S, to tell whether its holder lives.
    """
    if not folder.is_local:
        lease = _read(folder)
        return None if lease is None else _alive(folder, lease)
    while (note := folder.note_of_lock(LOCK)) is not None:
        if note:
            return _noted(folder, note)
        time.sleep(_PAUSE_S)
    return None


def _noted(folder: Folder, note: str) -> Holder:
    """The holder that a lock's file tells of; raises DatasetError where it is no such file."""
    try:
        return Holder.from_json(json.loads(note))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder}/{LOCK}: field missing or wrong: {error}") from error


def _in_lease(folder: Folder) -> tuple[str, Holder] | None:
    """Token and holder that a lease tells of; None where there is none."""
    lease = _read(folder)
    return None if lease is None else (lease.token, lease.holder)


def _in_lock(folder: Folder) -> tuple[str, Holder] | None:
    """The same of a lock's file, which tells of whoever had the lock last."""
    while folder.size(LOCK) is not None:
        if note := folder.read(LOCK).decode():
            holder = _noted(folder, note)
            return str(json.loads(note).get("token")), holder
        time.sleep(_PAUSE_S)
    return None


def _refusal(folder: Folder, holder: Holder | str) -> ConfigError:
    return ConfigError(f"{folder}: another job is writing here ({holder})")


@dataclass(frozen=True)
class _Lease:
    """The content of `.running.json`."""

    token: str
    renewed: int
    """How often."""
    holder: Holder

    def write(self, folder: Folder) -> None:
        content = {"token": self.token, "renewed": self.renewed, **self.holder.to_json()}
        folder.publish_json(LEASE, content)


def _read(folder: Folder) -> _Lease | None:
    """Raises DatasetError where it is damaged."""
    value = folder.read_json(LEASE)
    if value is None:
        return None
    try:
        return _Lease(str(value["token"]), int(value["renewed"]), Holder.from_json(value))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder}/{LEASE}: field missing or wrong: {error}") from error


@contextlib.contextmanager
def _leased(claim: Claim, holder: Holder) -> Iterator[Claim]:
    _take(claim, holder)
    renewal = _Renewal(claim, holder)
    try:
        with renewal:
            yield claim
    except KeyboardInterrupt:
        if renewal.lost is not None:
            raise renewal.lost from None
        raise


def _take(claim: Claim, holder: Holder) -> None:
    """Write a lease that stands. Raises ConfigError where somebody else has one."""
    folder, token = claim.folder, claim.token
    while True:
        lease = _read(folder)
        if lease is not None:
            if alive := _alive(folder, lease):
                raise _refusal(folder, alive)
            logger.info("taken over from a job that died: %s (%s)", folder, lease.holder)
        _Lease(token, 0, holder).write(folder)
        time.sleep(SETTLE_S)
        lease = _read(folder)
        if lease is not None and lease.token == token:
            return


def _alive(folder: Folder, lease: _Lease) -> Holder | None:
    """Who changes a lease while it is watched; None where it stays as it was, or goes."""
    logger.info("looking for up to %.0f s whether it lives: %s", WATCH_S, lease.holder)
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(LOOK_S)
        now = _read(folder)
        if now is None:
            return None
        if now != lease:
            return now.holder
    return None


class _Renewal:
    """The thread that renews a lease, as a context; the lease is gone at its end."""

    lost: Lost | None = None
    """Why the lease is another's by now."""

    def __init__(self, claim: Claim, holder: Holder) -> None:
        self._claim, self._holder = claim, holder
        self._gate = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._in_main:
            # A signal of its own: Ray Train takes Ctrl-C's for itself. It must look like Ctrl-C,
            # for all other exceptions are swallowed where Ray waits.
            self._before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        with self._gate:
            self._ended.set()
        self._thread.join()
        if self._in_main:
            signal.signal(signal.SIGUSR1, self._before or signal.SIG_DFL)
        if self.lost is not None:
            return
        try:
            self._claim.check()
            self._claim.folder.remove_file(LEASE)
        except (Lost, DatasetError, OSError) as error:
            logger.warning("lease not removed: %s", first_line(error))

    def _renew(self) -> None:
        renewed = 0
        while not self._ended.wait(RENEW_S):
            try:
                self._claim.check()
                renewed += 1
                _Lease(self._claim.token, renewed, self._holder).write(self._claim.folder)
            except Lost as lost:
                self._interrupt(lost)
                return
            except (ConfigError, DatasetError, OSError) as error:
                # The store may answer again before anybody takes over.
                logger.warning("lease not renewed: %s", first_line(error))

    def _interrupt(self, lost: Lost) -> None:
        """End what the main thread does, unless it ends just now."""
        with self._gate:
            if self._ended.is_set():
                return
            self.lost = lost
            if self._in_main:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
