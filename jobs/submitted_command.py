"""A command that is to run on a cluster: read and checked here, before anything is sent."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import settings
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

PLACES = frozenset(
    {
        *("source", "out", "retry", "picture_folder", "raws", "evaluation", "pairs", "features"),
        *("captions", "captioner", "judge", "init", "checkpoint", "control_features"),
        *("control_captions", "training", "candidates", "embeddings", "add_to", "annotations"),
        *("written", "index", "image", "save", "weights", "pictures", "entries", "within"),
        *("run_folder", "dataset", "beside", "export", "path", "token_file"),
    }
)
"""Fields of jobs that name a file or folder."""

NO_PLACES = frozenset({("select-captions", "judge")})
"""Fields of the same name that name none."""

_HERE_ONLY = ("submit", "runs", "runs follow", "runs stop", "demo", "plan")
"""Commands that are about this machine, or draw a web that only it sees."""

_WORKERS_COMPUTE = (
    *("ingest", "curate", "features", "train-stage1", "train-stage2", "capfilt", "embed", "serve"),
)
"""Commands whose own process only directs Ray's workers: it may run on a small head."""


@dataclass(frozen=True)
class SubmittedCommand:
    """A valid command, all of whose places a cluster may see."""

    words: tuple[str, ...]
    """As they are sent: without `viaduct`, with what a saved configuration says in its place."""
    name: str
    """Of one word or two."""

    @property
    def computes_itself(self) -> bool:
        """Whether its own process does the work, and so should not run on a small head."""
        return self.name not in _WORKERS_COMPUTE


def submitted_command(words: Sequence[str]) -> SubmittedCommand:
    """Read a command as it is read where it runs.

    Raises:
        ConfigError: there is no such command or option, a value is wrong, or it names a place by
            a relative path, which on the cluster would be a passing folder.
        SystemExit: after its --help.
    """
    from jobs.cli import parse, split_command, with_config

    words = list(words[1:] if list(words[:1]) == ["viaduct"] else words)
    if not words:
        raise ConfigError("command: none is given; `viaduct submit -- ingest ...`")
    name, arguments = split_command(words)
    if name in _HERE_ONLY:
        raise ConfigError(f"command: `viaduct {name}` runs here only")
    try:
        job = parse(name, arguments)
        arguments = with_config(name, arguments)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    _check_places(name, job)
    return SubmittedCommand((*name.split(), *arguments), name)


def _check_places(name: str, job: Any) -> None:
    """Refuse what the cluster cannot see; warn of what it sees only if all its nodes share it."""
    for field, value in _places(name, job):
        if _is_relative(value):
            raise ConfigError(
                f"{name}: {field}: {value!r} is a path on this machine; name what the cluster "
                "sees, by URI (s3://BUCKET/...) or as a whole path of a folder that its nodes share"
            )
        if "://" not in value or value.startswith("file://"):
            logger.warning("%s: %s: every node must see the same at %s", name, field, value)


def _places(name: str, job: Any) -> Iterator[tuple[str, str]]:
    """Field and value of each place that a job names."""
    for field, value in settings.flat(job).items():
        if field not in PLACES or (name, field) in NO_PLACES:
            continue
        for place in value if isinstance(value, list) else [value]:
            if isinstance(place, str) and not _is_named(place):
                yield field, place


def _is_named(value: str) -> bool:
    """Whether it is the name of weights (`hf:...`, `clip:...`, `pretrained`) and no place."""
    return re.match(r"[a-z]+:(?!//)", value) is not None or value in ("pretrained", "random")


def _is_relative(place: str) -> bool:
    return "://" not in place and not place.startswith(("/", "~"))
