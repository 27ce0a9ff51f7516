"""The captions that competed for pictures: how they were scored, and which were chosen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.report.contents import Contents, reading
from jobs.report.gallery import as_small
from pipeline.candidates import SYNTHETIC, WEB
from pipeline.captions import in_a_line, strings
from pipeline.dataset import Dataset
from pipeline.schemas import KEPT
from pipeline.selected import SUMMARY
from pipeline.selection import judges_of_dataset, scores_by

MEASURES = {"itm": np.linspace(0, 1, 26), "itc": np.linspace(-1, 1, 101)}
"""What a judge may tell, match probability and similarity, and the edges that they are counted
between."""

Counts = Mapping[str, Mapping[str, np.ndarray]]
"""Measure to source to int64[bins], how many captions score between two edges."""


@dataclass(frozen=True)
class Contender:
    """A caption that competed."""

    text: str
    status: str
    scores: Mapping[str, float]
    """By measure; empty of one that was not scored."""

    @property
    def is_kept(self) -> bool:
        return self.status == KEPT


@dataclass(frozen=True)
class Contest:
    """A picture with all captions that competed for it."""

    picture: str | None
    """As a data URI; None where the run has no picture of it."""
    web: list[Contender]
    written: list[Contender]


@dataclass(frozen=True)
class Side:
    """What was kept of one source's captions, and how diverse that is."""

    offered: int
    kept: int
    mean_words: float
    distinct_1: float
    distinct_2: float
    identical_share: float


@dataclass(frozen=True)
class Outcome:
    """What a selection left, or of candidates what is on offer, as their summary.json tells."""

    sides: Mapping[str, Side]
    """By source."""
    replaced_share: float
    """Of the web's captions on offer."""
    synthetic_share: float
    """Of the captions that were kept."""
    pictures: int
    """All, the held-out ones too."""
    judged: int
    without_caption: int
    """Of all pictures, as the next."""
    without_web_caption: int


@dataclass(frozen=True)
class Competition:
    """A dataset of `captions`, or of `candidates` that nothing was chosen of."""

    name: str
    judge: str
    by: str
    """The measure that counts, a key of MEASURES."""
    judges: tuple[str, ...]
    """All that judged, with that one."""
    chosen_by: str | None
    """The job that chose; None where nothing was chosen."""
    selection: Mapping[str, Any]
    """The settings of select-captions; empty where that has not chosen."""
    writing: Mapping[str, Any]
    """The settings of capfilt; empty where its dataset is not in this run."""
    judges_itself: bool
    """Whether the captioner is the judge, as capfilt found."""
    counts: Counts
    outcome: Outcome | None
    trained: list[str]
    """Names of the trainings on what was chosen."""
    num_judged: int
    """Pictures, without those that were taken down."""
    contests: list[Contest]
    """Some of these, spread evenly, those first whose best web caption scores lowest."""


def read_competitions(contents: Contents, limit: int) -> list[Competition]:
    """Read each dataset of captions with scores that a run holds, whoever chose of them.

    Args:
        contents: of the run.
        limit: pictures shown of each, at most.

    Raises:
        DatasetError: a shard or a summary.json is damaged; it is named.
    """
    datasets = contents.datasets
    chosen = {
        p.digest for d in datasets if d.kind == "captions" for p in d.manifest.lineage.parents
    }
    found = [
        _competition(dataset, contents, limit)
        for dataset in datasets
        if dataset.kind == "captions"
        or (dataset.kind == "candidates" and dataset.digest not in chosen)
    ]
    return [one for one in found if one is not None]


def _competition(dataset: Dataset, contents: Contents, limit: int) -> Competition | None:
    """None where nobody judged."""
    datasets, made = contents.datasets, contents.made
    made_by = dataset.manifest.lineage
    judges = judges_of_dataset(dataset)
    if not judges:
        return None
    selection = made_by.config if made_by.job == "select-captions" else {}
    judge = str(selection.get("judge") or next(iter(judges)))
    by = str(selection.get("by") or ("itm" if judges.get(judge) else "itc"))
    pairs = next((other for other in datasets if _beside(other, dataset)), None)
    scored = [_scored(number, dataset, pairs, judge) for number in dataset.records]
    candidates = _candidates_of(dataset, datasets)
    lineage = None if candidates is None else candidates.manifest.lineage
    return Competition(
        name=next(one.name for one in made if one.digest == dataset.digest),
        judge=judge,
        by=by,
        judges=tuple(judges),
        chosen_by=made_by.job if dataset.kind == "captions" else None,
        selection=selection,
        writing={} if lineage is None else lineage.config,
        judges_itself=lineage is not None and _judges_itself(lineage.frozen, judge),
        counts=_summed([one.counts for one in scored]),
        outcome=_outcome(dataset),
        trained=[
            one.name
            for one in made
            if one.kind.startswith("stage") and dataset.as_parent in one.lineage.parents
        ],
        num_judged=sum(len(one.rows) for one in scored),
        contests=_contests(dataset, pairs, judge, by, [one.rows for one in scored], limit),
    )


# All of them


@dataclass(frozen=True)
class _Scored:
    """Of a shard: how its captions score, and which rows were judged."""

    counts: Counts
    rows: np.ndarray


def _scored(number: int, dataset: Dataset, pairs: Dataset | None, judge: str) -> _Scored:
    shard = dataset.shard(number, columns=["uid", "captions"])
    captions, row = in_a_line(shard.table.column("captions"))
    source = strings(captions, "source")
    scores = scores_by(judge, pc.struct_field(captions, "scores"))
    live = np.asarray(shard.live)
    if pairs is not None:
        live = live & np.asarray(pairs.shard(number, columns=["uid"]).live)
    is_scored = ~np.isnan(scores[0]) & live[row]
    counts = {
        measure: {
            its: _counts(values[is_scored & (source == its)], MEASURES[measure])
            for its in (WEB, SYNTHETIC)
        }
        for measure, values in zip(("itc", "itm"), scores, strict=True)
    }
    return _Scored(counts, np.unique(row[is_scored]))


def _counts(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int64[bins]: a value that rounding took over an end is counted at it, NaN is not."""
    told = values[~np.isnan(values)]
    return np.histogram(np.clip(told, edges[0], edges[-1]), edges)[0]


def _summed(parts: Sequence[Counts]) -> Counts:
    return {
        measure: {
            source: np.sum([part[measure][source] for part in parts], axis=0)
            for source in (WEB, SYNTHETIC)
        }
        for measure in MEASURES
    }


def _outcome(dataset: Dataset) -> Outcome | None:
    """None where summary.json is gone."""
    if (summary := dataset.folder.read_json(SUMMARY)) is None:
        return None
    with reading(f"{dataset.folder}/{SUMMARY}"):
        sides = {}
        for source in (WEB, SYNTHETIC):
            told = summary["diversity"][source]
            measures = ("mean_words", "distinct_1", "distinct_2", "identical_share")
            sides[source] = Side(
                int(summary[source]),
                int(summary[f"{source}_kept"]),
                *(float(told[measure]) for measure in measures),
            )
        return Outcome(
            sides,
            float(summary["replaced_share"]),
            float(summary["synthetic_share"]),
            *(int(summary[name]) for name in ("pictures", "judged")),
            *(int(summary[name]) for name in ("without_caption", "without_web_caption")),
        )


# What lies around it


def _beside(other: Dataset, dataset: Dataset) -> bool:
    """Whether it has the pictures of a dataset, row for row."""
    return other.kind == "pairs" and all(
        number in other.records and other.records[number].uid_digest == record.uid_digest
        for number, record in dataset.records.items()
    )


def _candidates_of(dataset: Dataset, datasets: Sequence[Dataset]) -> Dataset | None:
    """The dataset itself, or the one that it was chosen of."""
    if dataset.kind == "candidates":
        return dataset
    parents = {parent.digest for parent in dataset.manifest.lineage.parents}
    return next((one for one in datasets if one.digest in parents), None)


def _judges_itself(frozen: Mapping[str, Any], judge: str) -> bool:
    return any(its["name"] == judge and its.get("is_captioner") for its in frozen.get("judges", ()))


# Some of them


def _contests(
    dataset: Dataset,
    pairs: Dataset | None,
    judge: str,
    by: str,
    rows: Sequence[np.ndarray],
    limit: int,
) -> list[Contest]:
    places = [
        (number, int(row)) for number, its in zip(dataset.records, rows, strict=True) for row in its
    ]
    spread = np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int)
    found = []
    for number, some in groupby((places[at] for at in spread), key=itemgetter(0)):
        captions = dataset.shard(number).table.column("captions")
        pictures = None if pairs is None else pairs.shard(number).table.column("picture")
        for _, row in some:
            picture = None if pictures is None else as_small(pictures[row].as_py())
            found.append(_contest(picture, captions[row].as_py(), judge))
    return sorted(found, key=partial(_best_of_web, by))


def _contest(picture: str | None, captions: Sequence[Mapping[str, Any]], judge: str) -> Contest:
    sides: dict[str, list[Contender]] = {WEB: [], SYNTHETIC: []}
    for caption in captions:
        scores = dict(_told(caption["scores"], judge))
        sides[caption["source"]].append(Contender(caption["text"], caption["status"], scores))
    return Contest(picture, sides[WEB], sides[SYNTHETIC])


def _told(scores: Sequence[Mapping[str, Any]], judge: str) -> Iterator[tuple[str, float]]:
    for score in scores:
        if score["judge"] == judge:
            yield from (
                (measure, score[measure]) for measure in MEASURES if score[measure] is not None
            )


def _best_of_web(by: str, contest: Contest) -> float:
    """Without one it is the lowest."""
    return max((one.scores[by] for one in contest.web if one.scores), default=-1.0)
