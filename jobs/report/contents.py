"""What a run's folder holds, as plain values: no drawing and no HTML here."""

import contextlib
import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from indexes.gathering import PICTURE_VECTORS
from indexes.storage import INDEX, is_added, unnamed_additions
from jobs.metric_lines import CHECKPOINT, METRICS, read_metrics
from jobs.run_log import RUN_FILE, command_line, runs_of
from pipeline.accounting import Account
from pipeline.dataset import DRAFT, Dataset
from pipeline.errors import DatasetError
from pipeline.lineage import Lineage
from pipeline.shard import MANIFEST
from pipeline.storage import Folder

_KINDS = ("raw", "pairs", "features", "candidates", "captions", "stage 1", "stage 2")
"""Kinds of what is made in the order in which data flows; what follows comes by name."""

_MARKS = (MANIFEST, DRAFT, CHECKPOINT, METRICS, INDEX)
"""Files that only what a job makes has: nothing of its own is looked for below it."""


@dataclass(frozen=True)
class Made:
    """A dataset, a checkpoint or an index."""

    name: str
    """Its folder, relative to the run's."""
    kind: str
    digest: str
    size: str
    lineage: Lineage


@dataclass(frozen=True)
class Stage:
    """What became of the pictures and captions that came into one dataset."""

    name: str
    kind: str
    pictures: Account
    captions: Account | None
    splits: Mapping[str, int]
    """Rows of each split, of `pairs` alone."""


@dataclass(frozen=True)
class Training:
    """A training folder, finished or not."""

    name: str
    stage: int
    finished: bool
    lines: tuple[Mapping[str, Any], ...]
    """Of metrics.jsonl."""

    def curve(self, split: str, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was measured."""
        points = [
            (int(line["step"]), float(line[metric]))
            for line in self.lines
            if line["split"] == split and line.get(metric) is not None
        ]
        return [step for step, _ in points], [value for _, value in points]


@dataclass(frozen=True)
class Step:
    """A command that was run."""

    name: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Fault:
    """A kind of fault that was planted in the web."""

    name: str
    planted: int
    found: int | None
    """None where nothing looks for it."""
    reason: str | None
    """What it was found as."""
    judged: int | None = None
    """Of a fault that only a judge of captions can see: pictures with it that were judged."""
    true: int = 0
    """Judged pictures without it."""
    true_left_out: int = 0
    """Of these, those of which the judge kept nothing that the web gave."""


@dataclass
class Contents:
    """All that is known of a run but its pictures."""

    name: str
    places: list[tuple[str, Folder]] = field(default_factory=list)
    """Folders that no job made, where its results may lie: names relative to the run's."""
    datasets: list[Dataset] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    evaluations: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    unfinished: list[str] = field(default_factory=list)
    """Names of folders whose job did not end."""

    @property
    def is_empty(self) -> bool:
        return not (self.made or self.trainings or self.evaluations or self.unfinished)


def read_run(run: Folder) -> Contents:
    """Read all that a run's folder and those up to two levels below it hold.

    Raises:
        DatasetError: a file is damaged; it is named.
    """
    contents = Contents(run.name)
    logged: list[tuple[str, Folder]] = []
    for name, folder in _folders(run):
        if not _is_made(folder):
            contents.places.append((name, folder))
            _read_results(contents, name, folder)
            continue
        logged.append((name, folder))
        if folder.size(INDEX) is not None:
            added = filter(is_added, folder.entries())
            logged += [(f"{name}/{addition}", folder / addition) for addition in added]
        _read_made(contents, name, folder)
    order = {kind: number for number, kind in enumerate(_KINDS)}
    contents.made.sort(key=lambda one: order.get(one.kind, len(order)))
    contents.stages.sort(key=lambda stage: order.get(stage.kind, len(order)))
    contents.trainings.sort(key=lambda training: training.stage)
    _read_logs(contents, logged)
    return contents


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn a field that is missing or wrong into a DatasetError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{name}: field missing or wrong: {error}") from error


def _folders(run: Folder, depth: int = 2, name: str = "") -> Iterator[tuple[str, Folder]]:
    """The folder and those below it, by name; what a job made is not entered."""
    yield name or run.name, run
    if depth == 0 or _is_made(run):
        return
    for entry in sorted(set(run.entries()) - set(run.files())):
        if not entry.startswith("."):
            below = f"{name}/{entry}" if name else entry
            yield from _folders(run / entry, depth - 1, below)


def _is_made(folder: Folder) -> bool:
    return any(folder.size(mark) is not None for mark in _MARKS)


def _read_made(contents: Contents, name: str, folder: Folder) -> None:
    if folder.size(MANIFEST) is not None:
        dataset = Dataset.open(folder)
        contents.datasets.append(dataset)
        rows = f"{dataset.num_rows:,} rows"
        manifest = dataset.manifest
        contents.made.append(Made(name, dataset.kind, dataset.digest, rows, manifest.lineage))
        contents.stages.append(
            Stage(name, dataset.kind, manifest.pictures, manifest.captions, _splits(dataset))
        )
        return
    checkpoint = folder.read_json(CHECKPOINT)
    index = folder.read_json(INDEX)
    if folder.size(METRICS) is not None:
        contents.trainings.append(_training(name, folder, checkpoint))
    if index is not None and checkpoint is None:
        _read_index(contents, name, folder, index)
        return
    if checkpoint is None:
        contents.unfinished.append(name)
        return
    with reading(f"{folder}/{CHECKPOINT}"):
        kind = f"stage {int(checkpoint['stage'])}"
        size = f"{int(checkpoint['step']):,} steps"
        lineage = Lineage.from_json(checkpoint["lineage"])
        contents.made.append(Made(name, kind, str(checkpoint["digest"]), size, lineage))


def _read_index(contents: Contents, name: str, folder: Folder, index: Mapping[str, Any]) -> None:
    """An index and what was added to it; the name of an addition says to which."""
    with reading(f"{folder}/{INDEX}"):
        contents.made.append(_indexed(name, "index", index))
        named = [str(added["folder"]) for added in index["added"]]
    for added in named:
        with reading(f"{folder / added}/{INDEX}"):
            its = (folder / added).read_json(INDEX)
            contents.made.append(_indexed(f"{name}/{added}", "addition", its))
    unnamed = unnamed_additions(folder, named)
    contents.unfinished += [f"{name}/{addition.name}" for addition in unnamed]


def _indexed(name: str, kind: str, index: Mapping[str, Any]) -> Made:
    shards = [shard["files"][PICTURE_VECTORS] for shard in index["shards"]]
    size = f"{sum(int(vectors['rows']) for vectors in shards):,} vectors"
    lineage = Lineage.from_json(index["lineage"]).without("index")
    return Made(name, kind, str(index["digest"]), size, lineage)


def _splits(dataset: Dataset) -> dict[str, int]:
    if dataset.kind != "pairs":
        return {}
    counts: Counter[str] = Counter()
    for shard in dataset.shards():
        counts.update(shard.table.column("split").filter(shard.live).to_pylist())
    return {split: counts[split] for split in ("train", "validation", "test")}


def _training(name: str, folder: Folder, checkpoint: Any) -> Training:
    lines = read_metrics(folder)
    with reading(f"{folder}/{CHECKPOINT}"):
        is_first = any(line.keys() & {"itc", "itm", "itg"} for line in lines)
        stage = int(checkpoint["stage"]) if checkpoint else 1 if is_first else 2
    return Training(name, stage, checkpoint is not None, tuple(lines))


def _read_results(contents: Contents, name: str, folder: Folder) -> None:
    """The results that lie in a folder beside what was made."""
    for file in folder.files():
        where = f"{folder}/{file}"
        if fnmatch.fnmatch(file, "evaluation*.json"):
            label = file if name == contents.name else f"{name}/{file}"
            contents.evaluations.append((label, _evaluation(folder.read_json(file), where)))
        elif file == "planted.json":
            with reading(where):
                contents.faults += [
                    _fault(kind, counts) for kind, counts in folder.read_json(file).items()
                ]
        elif file == "timings.json":
            with reading(where):
                contents.steps += [
                    Step(str(s["step"]), str(s["command"]), float(s["seconds"]))
                    for s in folder.read_json(file)
                ]


def _fault(kind: str, counts: Mapping[str, Any]) -> Fault:
    told = {
        name: int(counts[name]) for name in ("judged", "true", "true_left_out") if name in counts
    }
    return Fault(kind, int(counts["planted"]), counts["found"], counts["as"], **told)


def _evaluation(value: Any, where: str) -> Mapping[str, Any]:
    """Checked as far as the page needs it."""
    with reading(where):
        for of in value["recall"].values():
            for direction in ("picture_to_text", "text_to_picture"):
                for estimate in of[direction].values():
                    _ = [float(estimate[part]) for part in ("value", "low", "high")]
        _ = int(value["num_pictures"]), int(value["num_captions"]), str(value["split"])
        if value.get("rerank"):
            _ = int(value["rerank"]["k"])
        if value.get("leaks"):
            kinds = ("num_pictures", "same_uid", "same_pixels", "alike")
            _ = [int(value["leaks"][kind]) for kind in kinds]
    return value


def _read_logs(contents: Contents, logged: list[tuple[str, Folder]]) -> None:
    """When the jobs ran and with which versions; how long, where nothing else says it."""
    runs = []
    for name, folder in logged:
        with reading(f"{folder}/{RUN_FILE}"):
            runs += [(str(run["started"]), name, run) for run in runs_of(folder)]
    runs.sort(key=lambda run: run[:2])
    ended = [str(run["ended"]) for _, _, run in runs if run.get("ended")]
    contents.started = runs[0][0] if runs else None
    contents.ended = max(ended, default=None)
    for _, _, run in runs:
        contents.versions |= {"python": run["python"], **run["packages"]}
    if not contents.steps:
        contents.steps = [
            Step(name, command_line(run["command"]), float(run.get("seconds") or 0.0))
            for _, name, run in runs
        ]
