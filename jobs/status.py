"""`viaduct status`: how far a job is, how fast, and what failed why, from its records."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.standing import Shards, Standing, Steps, standings
from jobs.wording import duration, percent
from pipeline.accounting import Account
from pipeline.errors import ConfigError
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Status:
    """Say how far a dataset, an index or a training is, how fast it goes, and what failed why.

    Finished, in progress or stopped midway, in a folder or on an object store: what it says comes
    of records, so that neither Ray nor the job is asked, and no picture is read. Who works on it is
    seen by a lock; on an object store by a lease, which tells a dead job in some 15 seconds.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder or URI of a dataset of any kind, an index or a training; or one above them: then all
    that lie below it."""

    json: bool = False
    """Print JSON, a list with an object for each of them, on one line."""

    watch: float | None = None
    """Print it anew after so many seconds, until all of it is finished or Ctrl-C."""

    def __post_init__(self) -> None:
        if self.watch is not None and self.watch <= 0:
            raise ConfigError(f"watch: {self.watch:g} is not positive")

    def run(self) -> None:
        """Print it, once or again and again.

        Raises:
            ConfigError: there is nothing.
            DatasetError: a record is damaged; it is named.
        """
        folder = Folder.at(self.dataset)
        while True:
            found = standings(folder)
            if self.json:
                print(json.dumps([standing.to_json() for standing in found]), flush=True)
            else:
                self._print([line for standing in found for line in _lines(standing, folder)])
            if self.watch is None or all(one.is_at_rest for one in found):
                return
            time.sleep(self.watch)

    def _print(self, lines: list[str]) -> None:
        """On a terminal that is watched, in place of what was there."""
        if self.watch is not None and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print("\n".join(lines), flush=True)


_ALWAYS_TOLD = ("step", "split", "step_s", "pairs_per_s", "data_wait_s", "time_left_s")
"""What of a line of metrics stands in another place."""


def _lines(standing: Standing, above: Folder) -> Iterator[str]:
    """How it stands, for people."""
    name = standing.folder.path.removeprefix(above.path).strip("/") or above.name
    yield f"{name}: {standing.kind}, {_state(standing)}"
    if standing.shards is not None:
        yield f"  {_of_shards(standing.shards)}"
    elif standing.state != "finished" and standing.steps is None and standing.part:
        yield f"  {standing.part}"
    if standing.steps is not None:
        yield from (f"  {line}" for line in _of_steps(standing.steps, standing.state))
    for of, account in (("pictures", standing.pictures), ("captions", standing.captions)):
        if account is not None and account.num_in:
            yield from (f"  {line}" for line in _of_account(of, account))
    for number, why in standing.set_aside.items():
        yield f"  shard {number} was set aside" + (f": {why}" if why else "")
    for its in standing.additions.values():
        yield from (f"  {line}" for line in _lines(its, standing.folder))


def _state(standing: Standing) -> str:
    if standing.state == "finished":
        if standing.running is not None:
            return f"finished, and worked on again by {standing.running}"
        took = standing.seconds
        return "finished" + ("" if took is None else f"; its last run took {duration(took)}")
    if standing.running is not None:
        return f"worked on by {standing.running}"
    return f"nobody works on it; run the same command again to go on{_told(standing.command)}"


def _told(command: str | None) -> str:
    return "" if command is None else f": {command}"


def _of_shards(shards: Shards) -> str:
    total = "" if shards.total is None else f" of {shards.total:,}"
    told = [f"{shards.part + ': ' if shards.part else ''}{shards.done:,}{total} shards"]
    if shards.pictures_per_s is not None:
        told.append(f"{shards.pictures_per_s:,.1f} pictures/s")
    if shards.left_s is not None:
        told.append(f"{duration(shards.left_s)} to go")
    if shards.last_s is not None:
        told.append(f"the last one {duration(shards.last_s)} ago")
    return ", ".join(told)


def _of_steps(steps: Steps, state: str) -> Iterator[str]:
    told = [f"{steps.done:,} of {steps.total:,} steps"]
    if steps.step_s is not None and steps.data_wait_share is not None:
        told.append(f"{duration(steps.step_s)} a step")
        told.append(f"{percent(steps.data_wait_share)} of it waiting for data")
    if steps.left_s is not None:
        told.append(f"{duration(steps.left_s)} to go")
    yield ", ".join(told)
    for split, line in (("train", steps.train), ("validation", steps.validation)):
        if line:
            yield f"{split}, step {line['step']:,}: {_numbers(line)}"
    if state == "stopped" and steps.checkpoint is not None:
        yield f"goes on from step {steps.checkpoint:,}"
    if steps.best is not None:
        yield f"best checkpoint: step {steps.best:,}"


def _numbers(line: Mapping[str, float]) -> str:
    return " ".join(
        f"{name}={value:.4g}" for name, value in line.items() if name not in _ALWAYS_TOLD
    )


def _of_account(of: str, account: Account) -> Iterator[str]:
    yield f"{of}: {account.num_kept:,} of {account.num_in:,} kept"
    width = max(map(len, account.dropped), default=0)
    for reason, count in sorted(account.dropped.items(), key=lambda item: (-item[1], item[0])):
        yield f"  {reason:<{width}} {count:,}"
