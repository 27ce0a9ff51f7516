"""`viaduct takedown`: pictures out of every dataset, index and training that would see them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any

import tyro

from indexes.adding import unfinished_additions
from indexes.parts import indexed
from indexes.storage import INDEX
from jobs.metric_lines import CHECKPOINT
from pipeline.dataset import DRAFT, Dataset
from pipeline.erasure import erase
from pipeline.errors import ConfigError
from pipeline.shard import MANIFEST
from pipeline.source_files import find
from pipeline.storage import Folder
from pipeline.takedown import Wanted, folders_with, found_in, with_copies
from pipeline.tombstones import add_tombstones, read_tombstones


@dataclass(frozen=True, kw_only=True)
class Takedown:
    """Take pictures down from all datasets and indexes in some folders, at once and for good.

    Copies that curate united with them go too. Readers, loaders and searches leave them out from
    the moment on; trainings that are running see them until they are started again. Which
    checkpoints and indexes saw them is said.
    """

    entries: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")]
    """File or URI with a uid, a URL or a path of a source in each line."""

    within: Annotated[tuple[str, ...], tyro.conf.arg(name="in")]
    """Datasets, or folders with datasets, indexes and trainings in them, at any depth."""

    erase: bool = False
    """Remove what the datasets hold of them too, but for the uid; their rows stay."""

    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if not self.within:
            raise ConfigError("in: name at least one folder")

    def run(self) -> None:
        """Set the tombstones, erase where that is asked for, and print what was done."""
        wanted = Wanted.read(_lines_of(self.entries), self.entries)
        places = [place for location in self.within for place in _places(location)]
        datasets = [Dataset.open(folder) for folder, name in places if name == MANIFEST]
        pairs = [dataset for dataset in datasets if dataset.kind == "pairs"]
        uids = _closure(frozenset(wanted.uids), pairs)
        in_datasets = [(dataset, found_in(dataset, uids)) for dataset in datasets]
        in_datasets = [(dataset, found) for dataset, found in in_datasets if found]
        indexes = [folder for folder, name in places if name == INDEX]
        in_indexes = [(folder, indexed(folder, uids)) for folder in indexes]
        holders = [(dataset.folder, found) for dataset, found in in_datasets]
        holders += [(folder, found) for folder, found in in_indexes if found]
        for folder, found in holders:  # all of them, before anything is erased
            if not found <= read_tombstones(folder):
                add_tombstones(folder, found)
        erased = {str(d.folder): erase(d, found) for d, found in in_datasets if self.erase}
        everywhere = frozenset().union(*(found for _, found in holders))
        unfinished = [folder for folder, name in places if name == DRAFT]
        unfinished += [addition for index in indexes for addition in unfinished_additions(index)]
        saw = _saw(places, {dataset.digest for dataset, _ in in_datasets})
        report = {
            "taken_down": len(everywhere),
            "copies": sorted(uid.hex() for uid in everywhere - wanted.uids.keys()),
            "datasets_and_indexes": {str(folder): len(found) for folder, found in holders},
            "erased_rows": erased,
            "indexes_with_them": [str(folder) for folder, found in in_indexes if found],
            "checkpoints_that_saw_them": list(saw),
            "unfinished": [str(folder) for folder in unfinished],
            "unmatched": wanted.unmatched(everywhere),
        }
        print(json.dumps(report, indent=1) if self.json else "\n".join(_told(report)))


def _closure(uids: frozenset[bytes], pairs: list[Dataset]) -> frozenset[bytes]:
    """These uids with their copies in any of `pairs`, the copies of those, and so on."""
    while (more := reduce(lambda uids, one: with_copies(one, uids), pairs, uids)) != uids:
        uids = more
    return uids


def _lines_of(location: str) -> list[str]:
    found = find(location)
    if isinstance(found, Folder):
        raise ConfigError(f"{location}: is a folder, a list is needed")
    try:
        texts = [file.stream().read().decode() for file in found]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{location}: cannot be read: {error}") from error
    return [line for text in texts for line in text.splitlines()]


def _places(location: str) -> list[tuple[Folder, str]]:
    """All datasets, indexes, trainings and what is unfinished at or below a location.

    Raises:
        ConfigError: there is nothing.
    """
    places = list(folders_with(Folder.at(location), MANIFEST, INDEX, CHECKPOINT, DRAFT))
    if not places:
        raise ConfigError(f"in: {location}: no dataset, index or training is there")
    return places


def _saw(places: list[tuple[Folder, str]], digests: set[str]) -> Iterator[str]:
    """The trainings whose lineage names one of these datasets, or one of those trainings."""
    trainings = [(folder, folder.read_json(name)) for folder, name in places if name == CHECKPOINT]
    while seen := [(f, c) for f, c in trainings if digests & set(_named(c["lineage"]))]:
        yield from (str(folder) for folder, _ in seen)
        digests = {checkpoint["digest"] for _, checkpoint in seen}
        trainings = [training for training in trainings if training not in seen]


def _named(lineage: dict[str, Any]) -> Iterator[str]:
    """All digests of parents and of frozen parts."""
    yield from (parent["digest"] for parent in lineage["parents"])
    parts = (part for part in lineage["frozen"].values() if isinstance(part, dict))
    yield from (part["digest"] for part in parts if "digest" in part)


def _told(report: dict[str, Any]) -> Iterator[str]:
    yield f"{report['taken_down']} pictures are down, {len(report['copies'])} of them as copies"
    for folder, count in report["datasets_and_indexes"].items():
        gone = report["erased_rows"].get(folder)
        yield f"  {folder}: {count}" + ("" if gone is None else f", {gone} rows erased now")
    advice = {
        "checkpoints_that_saw_them": "saw them in training",
        "indexes_with_them": "leaves them out, and holds them until it is made anew",
        "unfinished": "is not finished; take down again when it is",
        "unmatched": "matches nothing",
    }
    for name, what in advice.items():
        yield from (f"{one}: {what}" for one in report[name])
