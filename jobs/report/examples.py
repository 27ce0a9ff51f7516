"""Examples of what ingest and curate found: pictures united, captions rejected, rows lost."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.gallery import as_small
from pipeline.dataset import Dataset
from pipeline.plan import EVALUATION_LEAK, plan_beside
from pipeline.tombstones import live_mask

_UNITED = ("duplicate", "near_duplicate", EVALUATION_LEAK)
_REJECTED = "rejected:"
_NOTHING_TO_SEE = "rejected:empty"
_LOST = ("failed:", "dropped:")
_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Example:
    """A row or a caption of one."""

    reason: str
    """As the accounts count it."""
    picture: str | None
    """As a data URI; None where none was stored."""
    kept: str | None
    """The picture that it was united with."""
    url: str
    texts: list[str]
    """The caption that was rejected, or those that came with the picture."""


def read_examples(datasets: Sequence[Dataset], limit: int) -> dict[str, list[Example]]:
    """A few examples of each kind, by kind; of all reasons in turn until there are enough.

    What was taken down is none of them.

    Args:
        datasets: of a run; those of kinds `raw` and `pairs` are looked into.
        limit: examples at most.

    Raises:
        DatasetError: a shard is damaged; it is named.
    """
    raws = [dataset for dataset in datasets if dataset.kind == "raw"]
    pairs = [dataset for dataset in datasets if dataset.kind == "pairs"]
    kinds = {
        "Pictures that were like others": [_united(one, raws) for one in pairs],
        "Captions that were rejected": [_rejected(one) for one in pairs],
        "Rows without a picture": [_lost(one) for one in raws],
    }
    found: dict[str, list[Example]] = {kind: [] for kind in kinds}
    in_turn = _in_turn(_named(kind, _in_turn(examples)) for kind, examples in kinds.items())
    for kind, example in islice(in_turn, limit):
        found[kind].append(example)
    return {kind: sorted(some, key=lambda e: e.reason) for kind, some in found.items() if some}


def _named(kind: str, examples: Iterator[Example]) -> Iterator[tuple[str, Example]]:
    return ((kind, example) for example in examples)


def _in_turn(sources: Iterable[Iterator[_Any]]) -> Iterator[_Any]:
    """One of each source after the other, until all are through."""
    waiting = list(sources)
    while waiting:
        for source in list(waiting):
            try:
                yield next(source)
            except StopIteration:
                waiting.remove(source)


def _united(pairs: Dataset, raws: Sequence[Dataset]) -> Iterator[Example]:
    """Pictures of `raws` that `pairs` has no row for, beside those it has in their place."""
    reasons = [reason for reason in _UNITED if reason in pairs.manifest.pictures.dropped]
    plan = plan_beside(pairs) if reasons else None
    by_digest = {raw.digest: raw for raw in raws}
    inputs = [by_digest.get(parent.digest) for parent in pairs.manifest.lineage.parents]
    if plan is None or None in inputs:
        return iter(())
    shards = [(raw, number) for raw in inputs if raw for number in raw.records]

    def of_reason(reason: str) -> Iterator[Example]:
        for line in _live_rows(plan.filter(pc.equal(plan.column("outcome"), reason)), pairs):
            raw, number = shards[line["input_shard"]]
            if line["uid"] in raw.tombstones:
                continue
            united, kept = _row(raw, number, line["input_row"]), None
            if line["output_shard"] is not None:
                kept = _row(pairs, line["output_shard"], line["output_row"])
            yield Example(
                reason,
                as_small(united["picture"]),
                as_small(kept["picture"]) if kept else None,
                united["url"],
                [caption["text"] for caption in united["captions"]],
            )

    return _in_turn(map(of_reason, reasons))


def _row(dataset: Dataset, shard: int, row: int) -> dict[str, Any]:
    return dataset.shard(shard).table.slice(row, 1).to_pylist()[0]


def _rejected(pairs: Dataset) -> Iterator[Example]:
    captions = pairs.manifest.captions
    dropped = captions.dropped if captions else {}
    reasons = sorted(r for r in dropped if r.startswith(_REJECTED) and r != _NOTHING_TO_SEE)

    def of_reason(reason: str) -> Iterator[Example]:
        for number, record in pairs.records.items():
            if not (record.captions and reason in record.captions.dropped):
                continue
            shard = pairs.shard(number)
            for row in _live_rows(shard.table, pairs):
                for caption in row["captions"]:
                    if caption["status"] == reason:
                        picture = as_small(row["picture"])
                        yield Example(reason, picture, None, row["url"], [caption["text"]])

    return _in_turn(map(of_reason, reasons))


def _lost(raw: Dataset) -> Iterator[Example]:
    reasons = sorted(r for r in raw.manifest.pictures.dropped if r.startswith(_LOST))

    def of_reason(reason: str) -> Iterator[Example]:
        for number, record in raw.records.items():
            if reason not in record.pictures.dropped:
                continue
            ledger = raw.attachment(number, "ledger")
            lost = ledger.filter(pc.equal(ledger.column("outcome"), reason))
            for row in _live_rows(lost, raw):
                yield Example(reason, None, None, row["url"], row["captions"])

    return _in_turn(map(of_reason, reasons))


def _live_rows(table: pa.Table, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Rows one by one, so that no more pictures are read than are looked at."""
    live = live_mask(table.column("uid"), dataset.tombstones).to_pylist()
    return (table.slice(row, 1).to_pylist()[0] for row, is_live in enumerate(live) if is_live)
