"""`viaduct demo`: every command one after the other, on a procedural web that needs no network.

scenes      what its pictures show, and what one would say of them
drawings, painting    how that is drawn
web         the web itself, with its faults planted and known
faults      what became of them
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from jobs.cluster import ClusterConfig, session
from jobs.demo.faults import planted_faults, verdict
from jobs.demo.scenes import WORLDS, World
from jobs.demo.web import make_clean_pages, make_pages, served, write_urls
from pipeline.errors import ConfigError, ViaductError

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

_RERANKED = 16
"""Candidates of each query that ITM puts in order: an eighth of what is usual, in half a minute."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How wide a demo is."""

    pages: int
    """Pages of the web; some five in six arrive as pictures of their own."""
    worlds: tuple[World, ...]
    """What its scenes are of."""
    test_share: float
    recipe: str
    """Of the encoder, both stages and CapFilt (`jobs.recipes`)."""
    captioned: int
    """Held-out pictures that are captioned."""
    clean_pages: int
    """Pages without a fault beside the web, for a captioner and a judge of their own; where there
    are none, stage 1 itself captions some training pictures and judges what it wrote."""
    first_steps: int | None = None
    """Steps of the stage 1 that these two begin from; another one is trained on what they chose."""


QUICK = Scale(
    pages=3000,
    worlds=WORLDS[:1],
    test_share=0.22,
    recipe="demo",
    captioned=12,
    clean_pages=0,
)
"""Within ten minutes on two cores."""

FULL = Scale(
    pages=9000,
    worlds=WORLDS,
    test_share=0.1,
    recipe="demo-full",
    captioned=24,
    clean_pages=1000,
    first_steps=500,
)
"""Within 45 minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Draw a procedural web, serve it on loopback, and take it from URLs to searches.

    Runs every command as a user would, on one Ray that it starts, and ends with a report. Checks
    that every fault planted in the web that ingest and curate can see is found, under the right
    name. A few training pictures get captions of stage 1's own (CapFilt), to be looked at; with
    --full all do, by a captioner and a judge of their own, and another stage 1 is trained on them.
    """

    out: str = "runs/demo"
    """Folder of all that is made; what an earlier demo left there is removed."""

    full: bool = False
    """Run wider and longer: up to 45 minutes on two cores instead of ten."""

    pages: int | None = None
    """Pages of the web; 3,000 by default, 9,000 with --full."""

    stage1_steps: int | None = None
    """Steps of each training of stage 1, if not the demo's own."""

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
        num_clean = min(scale.clean_pages, len(pages))
        clean = make_clean_pages(num_clean, len(pages), self.seed, scale.worlds)
        with session(self.cluster, dashboard=True):
            shell = _Shell(home, ray.get_runtime_context().gcs_address)
            with served([*pages, *clean]) as address:
                here = {"allow_host": "127.0.0.1", "per_host": 32}  # our own server, on loopback
                write_urls(pages, address, home / "urls.jsonl")
                shell("ingest", "urls.jsonl", out="raw", ray=True, **here)
                if clean:
                    (home / "clean").mkdir()
                    write_urls(clean, address, home / "clean/urls.jsonl")
                    shell("ingest", "clean/urls.jsonl", out="clean/raw", ray=True, **here)
            self._from_raw(shell, scale)
        planted = planted_faults(pages, home)
        shell("report", ".")
        print("\n".join(verdict(planted)))
        print(f"report: {home / 'report.html'}")

    def _from_raw(self, shell: "_Shell", scale: Scale) -> None:
        recipe = scale.recipe
        shell("curate", "raw", out="pairs", ray=True, test_share=scale.test_share)
        shell("features", "pairs", out="features", ray=True, recipe=recipe)
        captions = (self._two_rounds if scale.clean_pages else self._one_round)(shell, scale)
        data: dict[str, Any] = {"features": "features", "captions": "pairs"}
        made = {"checkpoint": "stage1"} | data
        chosen = made | {"captions": captions}
        shell("train-stage2", **chosen, out="stage2", ray=True, **self._settings(recipe, 2))
        shell("embed", **made, out="embeddings", ray=True)
        measured = {"out": "evaluation.json", "rerank": _RERANKED, "training": "pairs"}
        shell("evaluate", "embeddings", **made, **measured, ray=True)
        shell("index", "embeddings", pairs="pairs", checkpoint="stage1", out="index", split="test")
        shell("inspect", "pairs", pictures=_LOOK, num_pictures=scale.captioned, split="test")
        pictures = sorted(f"{_LOOK}/{file.name}" for file in (shell.home / _LOOK).glob("*.jpg"))
        shell("search", "index", *SEARCHES, image=pictures[0], k=5, save="searches")
        for stage in ("stage1", "stage2"):
            told = f"captions-{stage}.json"
            shell("caption", *pictures, checkpoint=stage, out=told, min_tokens=2)

    def _one_round(self, shell: "_Shell", scale: Scale) -> str:
        """Train stage 1 on the web's captions, then let it write and judge some; the captions to go
        on with, which are the web's: so few change nothing."""
        data: dict[str, Any] = {"features": "features", "captions": "pairs"}
        shell("train-stage1", **data, out="stage1", ray=True, **self._settings(scale.recipe, 1))
        _capfilt(shell, scale, captioner="stage1")
        return "pairs"

    def _two_rounds(self, shell: "_Shell", scale: Scale) -> str:
        """Train stage 1, from it a captioner and a judge on clean pairs, and stage 1 again on what
        they wrote and chose; the captions to go on with."""
        data: dict[str, Any] = {"features": "features", "captions": "pairs"}
        clean: dict[str, Any] = {"features": "clean/features", "captions": "clean/pairs"}
        shell("curate", "clean/raw", out="clean/pairs", ray=True)
        shell("features", "clean/pairs", out="clean/features", ray=True, recipe=scale.recipe)
        first = self._settings(scale.recipe, 1, scale.first_steps)
        shell("train-stage1", **data, out="round-1", ray=True, **first)
        for role in ("captioner", "judge"):
            tuned = self._settings(f"demo-{role}", 1)
            shell("train-stage1", init="round-1", **clean, out=role, ray=True, **tuned)
        _capfilt(shell, scale, captioner="captioner", judge="judge")
        again = data | {"captions": "captions"}
        shell("train-stage1", **again, out="stage1", ray=True, **self._settings(scale.recipe, 1))
        return "captions"

    def _settings(self, recipe: str, stage: int, steps: int | None = None) -> dict[str, Any]:
        """Options of a training: its recipe, and its steps if they are others."""
        steps = (self.stage1_steps if stage == 1 else self.stage2_steps) or steps
        return {"recipe": recipe} | ({"steps": steps} if steps else {})


def _capfilt(shell: "_Shell", scale: Scale, **models: str) -> None:
    """Have captions written and judged by these, and choose."""
    told: dict[str, Any] = {"features": "features", "pairs": "pairs"} | models
    shell("capfilt", **told, out="candidates", ray=True, recipe=scale.recipe)
    shell("select-captions", "candidates", out="captions", recipe=scale.recipe)


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
