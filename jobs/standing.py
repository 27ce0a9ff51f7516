"""How far what lies in a folder is, how fast, and what failed why: read from its records alone."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from indexes.storage import INDEX, committed_shard, read_manifest, unnamed_additions
from jobs.metric_lines import BEST, CHECKPOINT, CHECKPOINTS, read_metrics
from jobs.run_log import RUN_FILE, command_line, runs_of
from pipeline.accounting import Account
from pipeline.claim import Holder, holder_of
from pipeline.dataset import DRAFT, Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.shard import MANIFEST, Commit, commits
from pipeline.storage import Folder
from pipeline.takedown import folders_with


@dataclass(frozen=True)
class Shards:
    """The part of a job that fills a dataset, or an intermediate one, shard by shard."""

    part: str | None
    """What the job calls it; None of what is finished."""
    done: int
    total: int | None
    """None where nobody has told yet."""
    per_s: float | None = None
    """Shards, in the run that goes on; None where none was made in it yet, or none goes on."""
    pictures_per_s: float | None = None
    """Pictures that came in, likewise."""
    last_s: float | None = None
    """Seconds since the last one was made."""

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this speed."""
        if self.per_s is None or self.total is None:
            return None
        return (self.total - self.done) / self.per_s


@dataclass(frozen=True)
class Steps:
    """How a training goes."""

    done: int
    total: int
    train: Mapping[str, float] = field(default_factory=dict)
    """The last line of metrics: losses and the like."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """The last measures on held-out pairs."""
    step_s: float | None = None
    data_wait_share: float | None = None
    """Of a step's time."""
    left_s: float | None = None
    checkpoint: int | None = None
    """Steps that are safe: where it would go on from."""
    best: int | None = None


@dataclass(frozen=True)
class Standing:
    """How a dataset, an index or a training stands."""

    folder: Folder
    kind: str
    state: Literal["finished", "running", "stopped"]
    running: Holder | None = None
    """Who writes into it just now; also where what is finished is mended, or added to."""
    command: str | None = None
    """Of its last run."""
    part: str | None = None
    """What that did last, or does."""
    seconds: float | None = None
    """That its last run took; None where it was killed, or goes on."""
    shards: Shards | None = None
    steps: Steps | None = None
    pictures: Account | None = None
    captions: Account | None = None
    set_aside: Mapping[str, str] = field(default_factory=dict)
    """Shard to the reason."""
    additions: Mapping[str, "Standing"] = field(default_factory=dict)
    """What is being added to an index, by the name of its folder."""

    @property
    def is_at_rest(self) -> bool:
        """Whether it is finished, and nobody works on it."""
        over = self.state == "finished" and self.running is None
        return over and all(its.is_at_rest for its in self.additions.values())

    def to_json(self) -> dict[str, Any]:
        """All of it; what is not known is null."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "state": self.state,
            "running": self.running and self.running.to_json(),
            "command": self.command,
            "part": self.part,
            "seconds": self.seconds,
            "shards": self.shards and asdict(self.shards) | {"left_s": self.shards.left_s},
            "steps": self.steps and asdict(self.steps),
            "pictures": self.pictures and self.pictures.to_json(),
            "captions": self.captions and self.captions.to_json(),
            "set_aside": dict(self.set_aside),
            "additions": {name: its.to_json() for name, its in self.additions.items()},
        }


def standings(folder: Folder) -> list[Standing]:
    """How everything stands that lies at or below a folder.

    Raises:
        ConfigError: nothing does.
        DatasetError: a record is damaged; it is named.
    """
    marks = (MANIFEST, INDEX, CHECKPOINT, DRAFT)
    found = [_standing(its, mark) for its, mark in folders_with(folder, *marks)]
    if found:
        return found
    if not folder.exists():
        raise ConfigError(f"{folder}: no such folder")
    raise ConfigError(f"{folder}: no dataset, index or training is there")


def _standing(folder: Folder, mark: str) -> Standing:
    holder = holder_of(folder)
    published = next((name for name in (MANIFEST, INDEX, CHECKPOINT) if folder.size(name)), None)
    if mark == DRAFT and published is not None:  # it ended just now
        mark, holder = published, None
    run = _last_run(folder)
    told = {
        "running": holder,
        "state": "finished" if mark != DRAFT else "running" if holder else "stopped",
        "command": run.command,
        "part": run.part,
        "seconds": run.seconds,
    }
    if mark == MANIFEST:
        return _of_dataset(Dataset.open(folder), run, told)
    if mark == INDEX:
        return _of_index(folder, told)
    if mark == CHECKPOINT:
        return _of_training(folder, folder.read_json(CHECKPOINT), told)
    draft = folder.read_json(DRAFT)
    kind = _field(draft, f"{folder}/{DRAFT}", "kind")
    if kind in ("stage1", "stage2"):
        return _of_training(folder, draft, told)
    return _of_draft(folder, kind, run, told)


@dataclass(frozen=True)
class _Run:
    """The last run of a job, as run.json tells it."""

    command: str | None = None
    seconds: float | None = None
    phase: Mapping[str, Any] = field(default_factory=dict)
    """The last."""

    @property
    def part(self) -> str | None:
        return self.phase.get("phase")

    @property
    def set_aside(self) -> dict[int, str]:
        return {int(number): why for number, why in self.phase.get("set_aside", {}).items()}


def _last_run(folder: Folder) -> _Run:
    runs = runs_of(folder)
    if not runs:
        return _Run()
    where = f"{folder}/{RUN_FILE}"
    phases = _field(runs[-1], where, "phases")
    command = command_line(_field(runs[-1], where, "command"))
    return _Run(command, runs[-1].get("seconds"), phases[-1] if phases else {})


def _of_dataset(dataset: Dataset, run: _Run, told: Mapping[str, Any]) -> Standing:
    manifest = dataset.manifest
    done = len(dataset.records)
    reasons = {number: run.set_aside.get(number, "") for number in manifest.set_aside}
    return Standing(
        folder=dataset.folder,
        kind=dataset.kind,
        shards=Shards(part=None, done=done, total=done + len(manifest.set_aside)),
        pictures=manifest.pictures,
        captions=manifest.captions,
        set_aside=_named(reasons),
        **told,
    )


def _of_draft(folder: Folder, kind: str, run: _Run, told: Mapping[str, Any]) -> Standing:
    if kind == "index":
        return Standing(folder=folder, kind=kind, shards=_index_shards(folder, run), **told)
    made = commits(folder)
    records = [commit.record for commit in made.values()]
    captions = [record.captions for record in records if record.captions is not None]
    below = run.phase.get("folder")
    here = made if not below else commits(folder / below)
    if below is None:  # its part fills no shards, or none has begun
        shards = Shards(part=None, done=len(made), total=None) if made else None
    else:
        shards = _shards(here, run, told["state"] == "running")
    return Standing(
        folder=folder,
        kind=kind,
        shards=shards,
        pictures=Account.total(record.pictures for record in records),
        captions=Account.total(captions) if captions else None,
        set_aside=_named({n: why for n, why in run.set_aside.items() if n not in here}),
        **told,
    )


def _shards(made: Mapping[int, Commit], run: _Run, goes_on: bool) -> Shards:
    """How far the last phase of a run is, which fills a folder by shards."""
    phase = run.phase
    shards = Shards(part=run.part, done=len(made), total=phase.get("shards"))
    in_order = sorted(made.values(), key=lambda commit: commit.time_s)
    of_this_run = in_order[phase.get("shards_found", 0) :]
    if not goes_on or not of_this_run:
        return shards
    last = of_this_run[-1].time_s
    pictures = sum(commit.record.pictures.num_in for commit in of_this_run)
    took = last - datetime.fromisoformat(phase["began"]).timestamp()
    if took > 0:
        shards = replace(shards, per_s=len(of_this_run) / took, pictures_per_s=pictures / took)
    return replace(shards, last_s=max(0.0, time.time() - last))


def _of_index(folder: Folder, told: Mapping[str, Any]) -> Standing:
    manifest = read_manifest(folder)
    if manifest is None:
        raise DatasetError(f"{folder}/{INDEX}: is missing")
    named = [added.folder for added in manifest.added]
    unnamed = unnamed_additions(folder, named)
    parts = [manifest, *filter(None, (read_manifest(folder / name) for name in named))]
    num_shards = sum(len(part.shards) for part in parts)
    pictures = sum(shard.num_pictures for part in parts for shard in part.shards)
    return Standing(
        folder=folder,
        kind="index",
        shards=Shards(part=None, done=num_shards, total=num_shards),
        pictures=Account.all_kept(pictures),
        additions={its.name: _standing(its, DRAFT) for its in unnamed},
        **told,
    )


def _index_shards(folder: Folder, run: _Run) -> Shards:
    stems = (name.removesuffix(".json") for name in folder.files())
    made = [stem for stem in stems if stem.isdigit() and committed_shard(folder, int(stem))]
    return Shards(part=run.part, done=len(made), total=run.phase.get("shards"))


def _of_training(folder: Folder, record: Any, told: Mapping[str, Any]) -> Standing:
    """Of checkpoint.json where it is finished, of its draft where it is not."""
    finished = "step" in record
    where = f"{folder}/{CHECKPOINT if finished else DRAFT}"
    stage = _field(record, where, "stage") if finished else record["kind"].removeprefix("stage")
    config = _field(_field(record, where, "lineage"), where, "config")
    lines = {line["split"]: line for line in read_metrics(folder)}  # the last of each
    train, validation = lines.get("train", {}), lines.get("validation", {})
    done = int(record["step"] if finished else train.get("step", 0))
    safe = [int(name.removeprefix("step-")) for name in _whole_checkpoints(folder)]
    best = (folder / CHECKPOINTS).read_json(BEST)
    step_s = None
    if rate := train.get("pairs_per_s"):
        step_s = float(config["batch_size"]) / rate
    steps = Steps(
        done=done,
        total=int(config.get("steps", done)),
        train=train,
        validation=validation,
        step_s=step_s,
        data_wait_share=train["data_wait_s"] / step_s if step_s else None,
        left_s=train.get("time_left_s") if told["state"] == "running" else None,
        checkpoint=max(safe, default=None),
        best=None if best is None else int(_field(best, f"{folder}/{CHECKPOINTS}/{BEST}", "step")),
    )
    return Standing(folder=folder, kind=f"stage {stage}", steps=steps, **told)


def _whole_checkpoints(folder: Folder) -> list[str]:
    """The names of the checkpoints that a training may go on from."""
    home = folder / CHECKPOINTS
    names = [name for name in home.entries() if name.startswith("step-")]
    return [name for name in names if (home / name).size(CHECKPOINT) is not None]


def _named(reasons: Mapping[int, str]) -> dict[str, str]:
    """Shards as people see them in a folder."""
    return {f"{number:05d}": why for number, why in sorted(reasons.items())}


def _field(value: Any, where: str, name: str) -> Any:
    """A field of a record; raises DatasetError where it is missing."""
    try:
        return value[name]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{where}: field missing or wrong: {error}") from error
