"""`viaduct runs`: what was submitted to a cluster; `runs follow`, `runs stop`."""

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

import tyro

from jobs.cli import STOPPED
from jobs.ray_jobs import Cluster, Run


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs that `viaduct submit` began on a cluster, the latest last."""

    address: str | None = None
    """URL of the cluster's dashboard; by default as of `viaduct submit`."""

    json: bool = False
    """Print a JSON list instead of a table."""

    def run(self) -> None:
        runs = Cluster.at(self.address).runs()
        print(json.dumps([_told(run) for run in runs], indent=1) if self.json else _table(runs))


@dataclass(frozen=True, kw_only=True)
class FollowRun:
    """Show a run's log, from its beginning until it ends, and end with its exit code.

    Ctrl-C leaves the run going.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Of the run, as `viaduct runs` has it."""

    address: str | None = None
    """URL of the cluster's dashboard; by default as of `viaduct submit`."""

    def run(self) -> int:
        return follow(Cluster.at(self.address), self.name)


@dataclass(frozen=True, kw_only=True)
class StopRun:
    """Stop a run as Ctrl-C stops a command, and wait until it has ended.

    What it committed stays; the same command goes on from there.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Of the run, as `viaduct runs` has it."""

    address: str | None = None
    """URL of the cluster's dashboard; by default as of `viaduct submit`."""

    def run(self) -> None:
        cluster = Cluster.at(self.address)
        run = cluster.stop(self.name)
        words = shlex.join(run.command)
        print(f"{run.name}: {run.status}; to go on: `viaduct submit -- {words}`")


def follow(cluster: Cluster, name: str) -> int:
    """Show a run's log until it ends; its exit code, or 130 after Ctrl-C, which leaves it going."""
    try:
        run = cluster.follow(name, _say, _show)
    except KeyboardInterrupt:
        _say(
            f"{name}: goes on; {cluster.hint('follow', name)} follows it again, "
            f"{cluster.hint('stop', name)} stops it"
        )
        return STOPPED
    why = f": {run.message}" if run.status == "failed" and run.driver_exit_code is None else ""
    _say(f"{name}: {run.status} after {_duration(run)}{why}")
    return run.exit_code


def _show(part: str) -> None:
    print(part, end="", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _told(run: Run) -> dict[str, str | float | int | list[str] | None]:
    return {
        "name": run.name,
        "command": list(run.command),
        "status": run.status,
        "begun": run.begun.isoformat(timespec="seconds"),
        "ended": run.ended.isoformat(timespec="seconds") if run.ended else None,
        "duration_s": round(run.duration_s, 1),
        "exit_code": run.exit_code if run.is_over else None,
    }


def _table(runs: list[Run]) -> str:
    if not runs:
        return "no runs yet; `viaduct submit -- COMMAND ...` begins one"
    rows = [("name", "status", "since", "duration", "command")]
    for run in runs:
        since = run.begun.astimezone().strftime("%Y-%m-%d %H:%M")
        status = f"{run.status} ({run.exit_code})" if run.status == "failed" else run.status
        rows.append((run.name, status, since, _duration(run), shlex.join(run.command)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )


def _duration(run: Run) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(run.duration_s)))
