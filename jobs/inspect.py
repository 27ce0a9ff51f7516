"""`viaduct inspect`: what is in a dataset, whether it is whole, and some of its pictures."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jobs.results import place_of
from pipeline.accounting import Account
from pipeline.caption_table import write_caption_table
from pipeline.dataset import DRAFT, Dataset, check_side_by_side
from pipeline.embeddings import split_rows
from pipeline.errors import ConfigError, DatasetError
from pipeline.schemas import KEPT
from pipeline.shard import MANIFEST, all_committed
from pipeline.storage import Folder
from pipeline.verify import verify


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show a dataset: rows, accounts, lineage; read every byte; write pictures or captions out."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder or URI of a dataset of any kind, finished or not."""

    verify: bool = False
    """Read every byte and compare it with the records."""

    beside: str | None = None
    """Another dataset that must lie side by side with this one, row for row; if it does not, both
    and the first difference are named."""

    pictures: str | None = None
    """Folder to write pictures into, each with its kept captions beside it (`SHARD-ROW.jpg` and
    `.txt`, a folder that ingest reads)."""

    num_pictures: int = 24
    """How many pictures to write, spread evenly over the dataset."""

    export: str | None = None
    """Parquet file to write all captions into, a row each: uid, place, URL (of `captions` with
    --beside pairs), split, text, source, status, and each judge's scores."""

    split: Literal["all", "train", "validation", "test"] = "all"
    """Write only pictures or captions of this split (of a dataset that has splits)."""

    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.num_pictures < 1:
            raise ConfigError(f"num_pictures: {self.num_pictures} is not positive")

    def run(self) -> None:
        """Print what is asked for.

        Raises:
            ConfigError: `beside` does not match.
            DatasetError: `verify` found damage.
        """
        folder = Folder.at(self.dataset)
        if folder.size(MANIFEST) is None and folder.size(DRAFT) is not None:
            if self.verify or any((self.pictures, self.beside, self.export)):
                raise ConfigError(f"{folder}: not finished; run its job again before this")
            self._print(_draft_facts(folder))
            return
        dataset = Dataset.open(folder)
        self._print(_facts(dataset))
        beside = None if self.beside is None else Dataset.open(self.beside)
        if beside is not None:
            check_side_by_side(dataset, beside)
            self._say(f"side by side with {self.beside}")
        if self.export is not None:
            count = write_caption_table(dataset, beside, self.split, *place_of(self.export))
            self._say(f"{count:,} captions written to {self.export}")
        if self.pictures is not None:
            count = write_pictures(dataset, Path(self.pictures), self.num_pictures, self.split)
            self._say(f"{count} pictures written to {self.pictures}")
        if self.verify:
            faults = list(verify(dataset))
            if faults:
                raise DatasetError("\n".join(faults))
            self._say(f"verified: {dataset.num_bytes:,} bytes in {len(dataset.records)} shards")

    def _say(self, text: str) -> None:
        """Print a line beside the facts; where these are JSON, not among them."""
        print(text, file=sys.stderr if self.json else sys.stdout)

    def _print(self, facts: dict[str, Any]) -> None:
        print(json.dumps(facts, indent=1) if self.json else "\n".join(_lines(facts)))


def write_pictures(dataset: Dataset, folder: Path, count: int, split: str = "all") -> int:
    """Write pictures of `raw` or `pairs` with their kept captions; returns how many.

    Raises:
        ConfigError: the dataset holds no pictures or no splits, or the folder cannot be made.
    """
    if split != "all" and "split" not in dataset.manifest.schema:
        raise ConfigError(f"split: {dataset.folder} holds {dataset.kind!r}, which has no splits")
    if "picture" not in dataset.manifest.schema:
        raise ConfigError(f"{dataset.folder}: holds {dataset.kind!r}, which has no pictures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"pictures: {folder}: {error.strerror}") from error
    written = 0
    rows = (
        np.arange(dataset.num_rows)
        if split == "all"
        else np.flatnonzero(split_rows(dataset, split))
    )
    spread = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    for number, row in _places(dataset, rows[spread].tolist()):
        shard = dataset.shard(number)
        if not shard.live[row].as_py():
            continue
        pair = shard.table.slice(row, 1).to_pylist()[0]
        texts = [c["text"] for c in pair["captions"] if c["status"] == KEPT]
        stem = folder / f"{number:05d}-{row:05d}"
        stem.with_suffix(".jpg").write_bytes(pair["picture"])
        stem.with_suffix(".txt").write_text("".join(f"{t}\n" for t in texts), encoding="utf-8")
        written += 1
    return written


def _places(dataset: Dataset, rows: list[int]) -> Iterator[tuple[int, int]]:
    """Rows of the dataset, ascending, as shard and row within it."""
    start = 0
    for number, record in dataset.records.items():
        end = start + record.entry.rows
        yield from ((number, row - start) for row in rows if start <= row < end)
        start = end


def _facts(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "dataset": str(dataset.folder),
        "kind": dataset.kind,
        "digest": dataset.digest,
        "rows": dataset.num_rows,
        "shards": len(dataset.records),
        "bytes": dataset.num_bytes,
        "rows_per_batch": manifest.rows_per_batch,
        "set_aside": {f"{number:05d}": rows for number, rows in manifest.set_aside.items()},
        "taken_down": len(dataset.tombstones),
        "pictures": manifest.pictures.to_json(),
        "captions": manifest.captions.to_json() if manifest.captions else None,
        "schema": dict(manifest.schema),
        "lineage": manifest.lineage.to_json(),
    }


def _draft_facts(folder: Folder) -> dict[str, Any]:
    """A dataset that is not finished: what is committed so far, from the records alone."""
    draft = folder.read_json(DRAFT)
    records = all_committed(folder).values()
    captions = [record.captions for record in records if record.captions is not None]
    return {
        "dataset": str(folder),
        "kind": draft["kind"],
        "unfinished": "run its job again; it goes on where it stopped",
        "rows": sum(record.entry.rows for record in records),
        "shards": len(records),
        "bytes": sum(entry.bytes for record in records for entry in record.files),
        "pictures": Account.total(record.pictures for record in records).to_json(),
        "captions": Account.total(captions).to_json() if captions else None,
        "schema": draft["schema"],
        "lineage": draft["lineage"],
    }


def _lines(value: Any, indent: str = "") -> Iterator[str]:
    """Nested facts as indented lines; nothing is printed for what is empty."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, (dict, list, tuple)) and item:
            yield f"{indent}{key}"
            yield from _lines(item, indent + "  ")
        elif item not in (None, {}, []):
            number = isinstance(item, int) and not isinstance(item, bool)
            yield f"{indent}{key:<16} {f'{item:,}' if number else item}"
