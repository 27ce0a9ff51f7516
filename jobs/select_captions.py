"""`viaduct select-captions`: which of the candidates are trained on, by the scores of a judge."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro

from jobs.build import running
from pipeline.accounting import Account
from pipeline.candidates import caption_account
from pipeline.claim import Claim
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.erasure import without_payload
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.schemas import CANDIDATES
from pipeline.selected import SUMMARY, Selected, read_summary, told
from pipeline.selection import (
    SelectionConfig,
    choose,
    judges_of_dataset,
    over_budget,
    with_statuses,
)
from pipeline.shard import ShardRecord, commit_table
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class SelectCaptions:
    """Choose the captions to train on among `candidates`, by the scores that they have.

    No picture is looked at, so that it costs seconds to choose otherwise, into another folder.
    Pictures that were not judged, such as held-out ones, keep their captions as they are.
    """

    candidates: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CANDIDATES")]
    """Dataset of kind `candidates`, which `viaduct capfilt` makes."""

    out: str
    """Folder or URI of the dataset `captions` to make, to be named wherever captions are."""

    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def run(self) -> Dataset:
        """Make the dataset, or go on with it, and print what share of the captions it replaced.

        Raises:
            ConfigError: there is no such judge, or nobody judged.
        """
        candidates = Dataset.open(self.candidates, "candidates")
        selection = self.selection.resolved(_judges(candidates))
        lineage = Lineage("select-captions", asdict(selection), (candidates.as_parent,))
        draft = Draft.begin(Folder.at(self.out), "captions", CANDIDATES, lineage)
        made, summary = draft.whole(), read_summary(draft.folder)
        if made is None or summary is None:
            with (
                running(self, draft) as log,
                log.phase("select", draft.folder, shards=len(candidates.records)),
            ):
                made, summary = _make(draft, candidates, selection, log.claim)
        for line in told(summary):
            print(line)
        return made


def _judges(candidates: Dataset) -> dict[str, bool]:
    """Raises ConfigError where nobody judged."""
    if judges := judges_of_dataset(candidates):
        return judges
    raise ConfigError(f"{candidates.folder}: no caption has a score")


def _make(
    draft: Draft, candidates: Dataset, selection: SelectionConfig, claim: Claim
) -> tuple[Dataset, dict[str, Any]]:
    """The dataset and its summary."""
    over = _over(candidates, selection)
    committed = draft.committed()
    records: list[ShardRecord] = []

    def selected() -> Iterator[Selected]:
        for number in candidates.records:
            table = _rows(candidates, number)
            choice = choose(table, selection)
            statuses = choice.statuses if over is None else choice.without(over[number])
            table = with_statuses(table, statuses)
            records.append(committed.get(number) or _commit(draft, number, table))
            yield Selected.of(table)

    summary = Selected.total(selected()).to_json()
    claim.check()
    draft.folder.publish_json(SUMMARY, summary)
    return draft.publish(records), summary


def _commit(draft: Draft, number: int, table: pa.Table) -> ShardRecord:
    return commit_table(
        draft.folder,
        number,
        table,
        draft.rows_per_batch,
        pictures=Account.all_kept(table.num_rows),
        captions=caption_account(table),
    )


def _rows(candidates: Dataset, number: int) -> pa.Table:
    """The rows of a shard, of those taken down the uid alone."""
    shard = candidates.shard(number)
    return without_payload(shard.table, np.flatnonzero(~np.asarray(shard.live)), {"uid"})


def _over(candidates: Dataset, selection: SelectionConfig) -> dict[int, np.ndarray] | None:
    """By shard, which of its `Written` are over the budget; None where there is none."""
    if selection.synthetic_share is None:
        return None
    written, num_web = [], 0
    for number in candidates.records:
        choice = choose(_rows(candidates, number), selection)
        written.append(choice.written)
        num_web += choice.num_web
    over = over_budget(written, num_web, selection.synthetic_share)
    return dict(zip(candidates.records, over, strict=True))
