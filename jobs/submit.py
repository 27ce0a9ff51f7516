"""`viaduct submit`: a command as a run on a cluster."""

import datetime
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.ray_jobs import STOP_WAIT_S, Cluster
from jobs.runs import follow
from jobs.shipped_code import copy_code
from jobs.submitted_command import SubmittedCommand, submitted_command
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a command on a cluster, through Ray Jobs: `viaduct submit [OPTIONS] -- COMMAND ...`.

    COMMAND is one of Viaduct's with its options, as it would be typed here, its datasets on an
    object store or in folders that all nodes share. It is checked here first, and a file that it
    names by --config is read here. The run goes on when this machine is gone; `viaduct runs` lists
    runs, follows and stops them.
    """

    command: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="COMMAND")]
    """What to run, behind `--`: `ingest s3://bucket/urls.parquet --out s3://bucket/raw`."""

    address: str | None = None
    """URL of the cluster's dashboard, or `auto` on a machine of the cluster; by default
    RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else http://127.0.0.1:8265, where `ray dashboard` and
    `kubectl port-forward` bring it."""

    name: str | None = None
    """Of the run; by default its command and the time."""

    follow: bool = False
    """Show the run's log until it ends, and end with its exit code. Ctrl-C leaves the run going."""

    ship: bool = True
    """Send Viaduct's code along, so that all nodes run what this machine has; --no-ship runs what
    is installed on them."""

    driver_cpus: float | None = None
    """Cores to reserve for the command's own process, which then runs on a worker; with 0 it runs
    on the head. By default 0 for commands that leave the work to Ray's workers, 1 for others, or
    0 beside a GPU."""

    driver_gpus: float = 0.0
    """GPUs to reserve for the command's own process, such as `caption`."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(f"name: {self.name!r} has more than letters, digits, '.', '_', '-'")
        for name in ("driver_cpus", "driver_gpus"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name}: {value} is negative")

    def run(self) -> int:
        """Check, send, and follow if asked to; the exit code."""
        command = submitted_command(self.command)
        cluster = Cluster.at(self.address)
        name = self.name or _name(command)
        program = "python -m jobs.cli" if self.ship else "viaduct"
        with tempfile.TemporaryDirectory(prefix="viaduct-") as folder:
            cluster.submit(
                name,
                command.words,
                f"exec {program} {shlex.join(command.words)}",  # so that a signal reaches it
                runtime_env=self._environment(Path(folder)),
                entrypoint_num_cpus=self._driver_cpus(command),
                entrypoint_num_gpus=self.driver_gpus,
            )
        if self.follow:
            return follow(cluster, name)
        print(f"{name}: submitted; {cluster.hint('follow', name)} shows its log")
        return 0

    def _environment(self, folder: Path) -> dict[str, Any]:
        """Ray's runtime environment: the code, if it is sent, copied to a folder."""
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        if self.ship:
            copy_code(folder)
            environment["working_dir"] = str(folder)
        return environment

    def _driver_cpus(self, command: SubmittedCommand) -> float:
        if self.driver_cpus is not None:
            return self.driver_cpus
        return 1.0 if command.computes_itself and not self.driver_gpus else 0.0


def _name(command: SubmittedCommand) -> str:
    """Made of the command and the time: `train-stage1-20261124-091502`."""
    return f"{command.name.replace(' ', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
