"""Runs on a cluster, as Ray Jobs keeps them: found, followed and stopped."""

import asyncio
import datetime
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cli import STOPPED
from jobs.cluster import quieten
from pipeline.errors import ConfigError, ViaductError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
"""Of Ray's dashboard on its own machine, or through `ray dashboard` and `kubectl port-forward`."""

STOP_WAIT_S = 120
"""So long may a run that is stopped take to end, before Ray kills it."""

_ENDED = ("succeeded", "failed", "stopped")
_POLL_S = 0.5
_SAY_WAITING_S = 5.0
_SETTLES_S = 30.0
"""Between the end of a run's log and its last status."""


@dataclass(frozen=True)
class Run:
    """A command that was submitted."""

    name: str
    command: tuple[str, ...]
    """Its words, without `viaduct`."""
    status: str
    """pending, running, succeeded, failed or stopped."""
    begun: datetime.datetime
    """When it was submitted; in UTC, as the end is."""
    ended: datetime.datetime | None
    message: str
    """Ray's, on why it has the status."""
    driver_exit_code: int | None
    """Negative where a signal ended it."""

    @property
    def is_over(self) -> bool:
        return self.status in _ENDED

    @property
    def duration_s(self) -> float:
        """Until its end, or until now."""
        return ((self.ended or datetime.datetime.now(datetime.UTC)) - self.begun).total_seconds()

    @property
    def exit_code(self) -> int:
        """What the command ended with; 1 where Ray could not even start it."""
        if self.status == "stopped":
            return STOPPED
        if self.driver_exit_code is None:
            return 0 if self.status == "succeeded" else 1
        return self.driver_exit_code if self.driver_exit_code >= 0 else 128 - self.driver_exit_code


@dataclass(frozen=True)
class Cluster:
    """A cluster's runs, behind its dashboard."""

    client: "JobSubmissionClient"
    address: str | None
    """As the user gave it."""

    @staticmethod
    def at(address: str | None) -> "Cluster":
        """Connect to a cluster's dashboard.

        Args:
            address: its URL, or `auto` for the cluster this machine is of. None asks
                RAY_API_SERVER_ADDRESS and RAY_ADDRESS, as Ray does, then takes `ADDRESS`.

        Raises:
            ConfigError: no cluster answers there.
        """
        quieten()
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        if address is not None and address != "auto" and "://" not in address:
            raise ConfigError(f"address: {address!r} is no URL such as {ADDRESS}")
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        _take_token()
        try:
            with _overriding(address):
                return Cluster(JobSubmissionClient(ADDRESS), address)
        except AuthenticationError as error:
            raise ConfigError(f"address: {_named(address)}: {first_line(error)}") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"address: no dashboard of a Ray cluster answers at {_named(address)}; "
                f"`ray dashboard` or `kubectl port-forward` brings it here ({first_line(error)})"
            ) from error

    def hint(self, command: str, name: str) -> str:
        """A command about a run of this cluster, to be typed."""
        where = f" --address {self.address}" if self.address else ""
        return f"`viaduct runs {command} {name}{where}`"

    def submit(self, name: str, command: Sequence[str], entrypoint: str, **options: Any) -> None:
        """Start a run; `options` are those of Ray's `submit_job`.

        Raises:
            ConfigError: there is a run of this name.
            ViaductError: the cluster refuses it.
        """
        if any(run.name == name for run in self.runs()):
            raise ConfigError(f"name: there is a run {name!r} already")
        with _clear_errors():
            self.client.submit_job(
                entrypoint=entrypoint,
                submission_id=name,
                metadata={_COMMAND: json.dumps(list(command))},
                **options,
            )

    def runs(self) -> list[Run]:
        """All that were submitted by Viaduct, in the order of their beginnings."""
        with _clear_errors():
            jobs = self.client.list_jobs()
        runs = [_run(job) for job in jobs if job.submission_id and _COMMAND in (job.metadata or {})]
        return sorted(runs, key=lambda run: run.begun)

    def run(self, name: str) -> Run:
        """The run of a name.

        Raises:
            ConfigError: there is none.
        """
        runs = self.runs()
        for run in runs:
            if run.name == name:
                return run
        last = ", ".join(run.name for run in runs[-3:])
        raise ConfigError(f"name: no run {name!r} on this cluster" + (f"; {last}" if last else ""))

    def follow(self, name: str, tell: Callable[[str], None], write: Callable[[str], None]) -> Run:
        """Wait for the end of a run, with its log as it comes; the run as it ended.

        Args:
            name: of the run.
            tell: takes a line on what is waited for.
            write: takes parts of the log, all from its beginning.

        Raises:
            ConfigError: there is no such run.
            ViaductError: the connection broke; the run goes on.
        """
        from aiohttp import ClientError

        self._await_start(name, tell)
        try:
            asyncio.run(self._write_log(name, write))
        except (OSError, RuntimeError, ClientError) as error:
            if not self.run(name).is_over:  # a run may have ended with the node that has its log
                raise ViaductError(
                    f"{name}: its log broke off ({first_line(error)}); "
                    f"{self.hint('follow', name)} takes it up"
                ) from error
        return self.wait(name, _SETTLES_S)

    def stop(self, name: str) -> Run:
        """Ask a run to stop, and wait until it has; the run as it ended.

        Raises:
            ConfigError: there is no such run, or it has ended.
            ViaductError: it goes on for longer than it may.
        """
        run = self.run(name)
        if run.is_over:
            raise ConfigError(f"name: the run {name!r} has ended already: {run.status}")
        with _clear_errors():
            self.client.stop_job(name)
        return self.wait(name, STOP_WAIT_S + _SETTLES_S)

    def wait(self, name: str, longest_s: float) -> Run:
        """The run as it ended; raises ViaductError if it has not by then."""
        deadline = time.monotonic() + longest_s
        while not (run := self.run(name)).is_over:
            if time.monotonic() > deadline:
                raise ViaductError(f"{name}: is {run.status} still; {self.hint('follow', name)}")
            time.sleep(_POLL_S)
        return run

    def _await_start(self, name: str, tell: Callable[[str], None]) -> None:
        """Until the run is no longer pending."""
        begun, told = time.monotonic(), False
        while (run := self.run(name)).status == "pending":
            if not told and time.monotonic() - begun > _SAY_WAITING_S:
                tell(f"{name}: waits: {run.message}")
                told = True
            time.sleep(_POLL_S)

    async def _write_log(self, name: str, write: Callable[[str], None]) -> None:
        async for part in self.client.tail_job_logs(name):
            write(part)


_VARIABLE = "RAY_API_SERVER_ADDRESS"

_TALKATIVE = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of each upload and connection."""

_COMMAND = "viaduct_command"
"""The key under which Ray keeps a run's words."""


def _run(job: Any) -> Run:
    """What Ray tells of a submitted job."""
    return Run(
        name=job.submission_id,
        command=tuple(json.loads(job.metadata[_COMMAND])),
        status=job.status.value.lower(),
        begun=_moment(job.start_time),
        ended=_moment(job.end_time) if job.end_time else None,
        message=job.message or "",
        driver_exit_code=job.driver_exit_code,
    )


def _moment(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)


def _take_token() -> None:
    """Send the user's token, if there is one: `ray start` asks for it then, its client does not."""
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextmanager
def _overriding(address: str | None) -> Iterator[None]:
    """Have an address that is given go before the variable, which Ray would obey."""
    before = os.environ.get(_VARIABLE)
    if address is not None:
        os.environ[_VARIABLE] = address
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VARIABLE] = before
        else:
            os.environ.pop(_VARIABLE, None)


def _named(address: str | None) -> str:
    """Where it was looked for."""
    given = os.environ.get(_VARIABLE) or os.environ.get("RAY_ADDRESS")
    return address or given or ADDRESS


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # those of requests are OSErrors
        raise ViaductError(f"the cluster does not answer as it should: {first_line(error)}") from (
            error
        )
