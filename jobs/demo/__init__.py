"""`viaduct demo`: every command one after the other, on a procedural web that needs no network.

scenes      what its pictures show, and what one would say of them
drawings, painting    how that is drawn
web         the web itself, with its faults planted and known
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from jobs.cluster import ClusterConfig, session
from jobs.demo.scenes import WORLDS, World
from jobs.demo.web import Page, make_pages, num_planted, served, write_urls
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, ViaductError

CAUGHT_AS = {
    "missing": "failed:http_404",
    "html": "failed:not_a_picture",
    "truncated": "failed:truncated",
    "duplicate": "duplicate",
    "says_nothing": "rejected",
}
"""What ingest and curate must call each planted fault that they can see."""

SEARCHES = (
    "a red house on a meadow",
    "a white balloon and a yellow butterfly at night",
    "a blue star, a red balloon and a green butterfly",
    "a black butterfly above a yellow house",
)

_MARK = ".viaduct-demo"
"""The file that makes a folder a demo's, to be made anew by the next one."""

_LOOK = "look"
"""Folder of held-out pictures that are captioned."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How wide a demo is."""

    pages: int
    """Pages of the web; some five in six arrive as pictures of their own."""
    worlds: tuple[World, ...]
    """What its scenes are of."""
    test_share: float
    recipe: str
    """Of the encoder and both stages (`jobs.recipes`)."""
    captioned: int
    """Held-out pictures that are captioned."""


QUICK = Scale(
    pages=3000,
    worlds=WORLDS[:1],
    test_share=0.22,
    recipe="demo",
    captioned=12,
)
"""Within ten minutes on two cores."""

FULL = Scale(
    pages=9000,
    worlds=WORLDS,
    test_share=0.1,
    recipe="demo-full",
    captioned=24,
)
"""Within 45 minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Draw a procedural web, serve it on loopback, and take it from URLs to searches.

    Runs every command as a user would, on one Ray that it starts, and ends with a report. Checks
    that every fault planted in the web is found, under the right name.
    """

    out: str = "runs/demo"
    """Folder of all that is made; what an earlier demo left there is removed."""

    full: bool = False
    """Run wider and longer: up to 45 minutes on two cores instead of ten."""

    pages: int | None = None
    """Pages of the web; 3,000 by default, 9,000 with --full."""

    stage1_steps: int | None = None
    """Steps of stage 1, if not the demo's own."""

    stage2_steps: int | None = None
    """Steps of stage 2, if not the demo's own."""

    seed: int = 0
    """Another seed draws another web."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        for name in ("pages", "stage1_steps", "stage2_steps"):
            value = getattr(self, name)
            if value is not None and value < 10:
                raise ConfigError(f"{name}: {value} is less than 10")
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed} is negative")

    def run(self) -> None:
        """Run all commands, then print what became of the planted faults and where the report is.

        Raises:
            ViaductError: a command failed, or a fault was missed or miscounted.
        """
        home = Path(self.out)
        if home.exists() and not (home / _MARK).exists():
            raise ConfigError(f"{home}: exists and is no demo's folder; choose another --out")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / _MARK).touch()
        scale = FULL if self.full else QUICK
        pages = make_pages(self.pages or scale.pages, self.seed, scale.worlds)
        with session(self.cluster, dashboard=True):
            shell = _Shell(home, ray.get_runtime_context().gcs_address)
            with served(pages) as address:
                write_urls(pages, address, home / "urls.jsonl")
                here = {"allow_host": "127.0.0.1", "per_host": 32}  # our own server, on loopback
                shell("ingest", "urls.jsonl", out="raw", ray=True, **here)
            self._from_raw(shell, scale)
        planted = _planted(pages, home)
        shell("report", ".")
        print("\n".join(_verdict(planted)))
        print(f"report: {home / 'report.html'}")

    def _from_raw(self, shell: "_Shell", scale: Scale) -> None:
        recipe: dict[str, Any] = {"recipe": scale.recipe}
        stage1 = recipe | ({"steps": self.stage1_steps} if self.stage1_steps else {})
        stage2 = recipe | ({"steps": self.stage2_steps} if self.stage2_steps else {})
        data: dict[str, Any] = {"features": "features", "captions": "pairs"}
        made = {"checkpoint": "stage1"} | data
        shell("curate", "raw", out="pairs", ray=True, test_share=scale.test_share)
        shell("features", "pairs", out="features", ray=True, **recipe)
        shell("train-stage1", **data, out="stage1", ray=True, **stage1)
        shell("train-stage2", **made, out="stage2", ray=True, **stage2)
        shell("embed", **made, out="embeddings", ray=True)
        shell("evaluate", "embeddings", **made, out="evaluation.json")
        shell("index", "embeddings", pairs="pairs", checkpoint="stage1", out="index", split="test")
        shell("inspect", "pairs", pictures=_LOOK, num_pictures=scale.captioned, split="test")
        pictures = sorted(f"{_LOOK}/{file.name}" for file in (shell.home / _LOOK).glob("*.jpg"))
        shell("search", "index", *SEARCHES, image=pictures[0], k=5, save="searches")
        for stage in ("stage1", "stage2"):
            told = f"captions-{stage}.json"
            shell("caption", *pictures, checkpoint=stage, out=told, min_tokens=2)


@dataclass
class _Shell:
    """Runs commands in a folder as a user would, and keeps how long each took."""

    home: Path
    address: str
    """Of the Ray that is passed to every command that takes one."""
    _timings: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, command: str, *words: str, ray: bool = False, **options: Any) -> None:
        """Run one command.

        Args:
            command: of viaduct.
            words: its positional arguments.
            ray: whether it takes the Ray address.
            options: its options, with underscores or hyphens.

        Raises:
            ViaductError: it failed.
        """
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        told = " ".join(map(shlex.quote, ["viaduct", command, *words, *flags]))
        print(f"\n$ {told}", flush=True)
        address = [f"--address={self.address}"] if ray else []
        program = Path(sys.executable).with_name("viaduct")
        begun = time.monotonic()
        ended = subprocess.run(
            [program, command, *words, *flags, *address], cwd=self.home, check=False
        )
        if ended.returncode:
            raise ViaductError(f"viaduct {command} ended with exit code {ended.returncode}")
        seconds = round(time.monotonic() - begun, 1)
        self._timings.append({"step": command, "command": told, "seconds": seconds})
        (self.home / "timings.json").write_text(json.dumps(self._timings, indent=1) + "\n")


def _planted(pages: list[Page], home: Path) -> dict[str, dict[str, Any]]:
    """Each kind of planted fault: how many there are, how many were found, and as what.

    Also written to planted.json, for the report.
    """
    found = Counter[str]()
    raw, pairs = (Dataset.open(str(home / kind), kind).manifest for kind in ("raw", "pairs"))
    found += Counter(raw.pictures.dropped) + Counter(pairs.pictures.dropped)
    captions = pairs.captions.dropped if pairs.captions else {}
    found["rejected"] = sum(n for why, n in captions.items() if why.startswith("rejected:"))
    planted = {}
    for fault, count in sorted(num_planted(pages).items()):
        reason = CAUGHT_AS.get(fault)
        caught = None if reason is None else found[reason]
        planted[fault] = {"planted": count, "found": caught, "as": reason}
    (home / "planted.json").write_text(json.dumps(planted, indent=1) + "\n")
    return planted


def _verdict(planted: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each kind of planted fault.

    Raises:
        ViaductError: a fault was missed or miscounted.
    """
    yield "\nplanted in the web        found"
    for fault, counts in planted.items():
        if counts["as"] is None:
            yield f"{fault:<16} {counts['planted']:>6}    (a caption's fault; not judged yet)"
            continue
        yield f"{fault:<16} {counts['planted']:>6}    {counts['found']:>6} as {counts['as']}"
        if counts["found"] != counts["planted"]:
            raise ViaductError(
                f"{counts['planted']} {fault} planted, {counts['found']} found as {counts['as']}"
            )
