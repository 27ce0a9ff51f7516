"""`viaduct demo`: the jobs one after the other, on a procedural web that needs no network.

scenes      what its pictures show, and what one would say of them
web         the web itself, with its faults planted and known
"""

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jobs.cluster import ClusterConfig, session
from jobs.curate import Curate
from jobs.demo.web import make_pages, num_planted, served, write_urls
from jobs.features import Features
from jobs.ingest import Ingest
from jobs.inspect import Inspect
from model.encoders import EncoderConfig
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, ViaductError

# What ingest and curate must call each planted fault that they can see.
_CAUGHT_AS = {
    "missing": "failed:http_404",
    "html": "failed:not_a_picture",
    "truncated": "failed:truncated",
    "duplicate": "duplicate",
}


_MARK = ".viaduct-demo"
"""The file that makes a folder a demo's, to be made anew by the next one."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Draw a procedural web, serve it on loopback, and take it from URLs to features.

    Checks that every fault planted in the web is found, under the right name.
    """

    out: str = "runs/demo"
    """Folder of all that is made; what an earlier demo left there is removed."""

    scenes: int = 3000
    """Pages of the web."""

    seed: int = 0
    """Another seed draws another web."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.scenes < 10:
            raise ConfigError(f"scenes: {self.scenes} is less than 10")
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed} is negative")

    def run(self) -> None:
        """Run all jobs and print what became of the planted faults.

        Raises:
            ViaductError: a fault was missed or miscounted.
        """
        home = Path(self.out)
        if home.exists() and not (home / _MARK).exists():
            raise ConfigError(f"{home}: exists and is no demo's folder; choose another --out")
        for name in ("raw", "pairs", "features", "look"):
            shutil.rmtree(home / name, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        (home / _MARK).touch()
        pages = make_pages(self.scenes, self.seed)
        with session(self.cluster):
            with served(pages, self.seed) as address:
                write_urls(pages, address, home / "urls.jsonl")
                raw = Ingest(source=str(home / "urls.jsonl"), out=str(home / "raw")).run()
            pairs = Curate(raws=(str(home / "raw"),), out=str(home / "pairs")).run()
            offline = EncoderConfig(encoder="offline:efficientnet_lite0")
            Features(pairs=str(home / "pairs"), out=str(home / "features"), encoder=offline).run()
        Inspect(dataset=str(home / "pairs"), pictures=str(home / "look")).run()
        print(_verdict(num_planted(pages), raw, pairs))


def _verdict(planted: Counter[str], raw: Dataset, pairs: Dataset) -> str:
    """A line for each kind of planted fault: how many there were, and how many were found."""
    found = Counter(raw.manifest.pictures.dropped) + Counter(pairs.manifest.pictures.dropped)
    lines = ["", "planted in the web        found"]
    for fault, count in sorted(planted.items()):
        reason = _CAUGHT_AS.get(fault)
        if reason is None:
            lines.append(f"{fault:<16} {count:>6}    (a caption's fault; not judged by curate yet)")
            continue
        lines.append(f"{fault:<16} {count:>6}    {found[reason]:>6} as {reason}")
        if found[reason] != count:
            raise ViaductError(f"{count} {fault} planted, {found[reason]} found as {reason}")
    return "\n".join(lines)
