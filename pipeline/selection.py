"""Selection: which of a picture's candidates are kept, by the scores of one judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.candidates import BELOW_THRESHOLD, NOT_BEST, OVER_BUDGET, SYNTHETIC
from pipeline.captions import in_a_line, strings
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.schemas import CANDIDATES, KEPT

_THRESHOLDS = ("web_threshold", "synthetic_threshold")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which captions are kept: first the thresholds, then the best of a picture, then the share."""

    judge: str | None = None
    """Whose scores count, by its name in the candidates, such as `clip:NAME`; needs no naming where
    there is one judge."""

    by: Literal["itm", "itc"] | None = None
    """What the best have most of, and thresholds are of: match probability (itm; ties by
    similarity) or similarity (itc); by default itm, or itc where the judge tells no match
    probability."""

    top_k: int | None = 2
    """Captions of a picture that are kept at most, the web's among them; `None` keeps all."""

    web_threshold: float | None = None
    """What a web caption must reach, 0 to 1 by itm and -1 to 1 by itc."""

    synthetic_threshold: float | None = None
    """What a caption that a model wrote must reach, likewise."""

    synthetic_share: float | None = None
    """Share of the kept captions of judged pictures that models may have written, 0 to 1; beyond it
    those go that score lowest over the whole dataset, and a picture that loses all keeps its best
    web caption. What others keep of an earlier round is not counted."""

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k: {self.top_k} is not positive")
        for name in _THRESHOLDS:
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ConfigError(f"{name}: {value} is not between -1 and 1")
        if self.synthetic_share is not None and not 0 <= self.synthetic_share <= 1:
            raise ConfigError(f"synthetic_share: {self.synthetic_share} is not between 0 and 1")

    def resolved(self, judges: Mapping[str, bool]) -> "SelectionConfig":
        """With the judge and what is best named.

        Args:
            judges: those of the candidates, as `judges_of` tells them.

        Raises:
            ConfigError: there is no such judge, none is named among several, it tells no
                match probability, or a threshold is none of one.
        """
        judge = self.judge
        if judge is None:
            if len(judges) != 1:
                raise ConfigError(f"judge: name one of {', '.join(judges) or '(nobody judged)'}")
            [judge] = judges
        if judge not in judges:
            raise ConfigError(f"judge: {judge!r} did not judge these; {', '.join(judges)} did")
        if self.by == "itm" and not judges[judge]:
            raise ConfigError(f"by: {judge} tells no match probability, choose by itc")
        by = self.by or ("itm" if judges[judge] else "itc")
        for name in _THRESHOLDS:
            value = getattr(self, name)
            if by == "itm" and value is not None and value < 0:
                raise ConfigError(f"{name}: {value} is below 0, but match probabilities are not")
        return replace(self, judge=judge, by=by)


def judges_of(table: pa.Table) -> dict[str, bool]:
    """Who judged the captions of some rows: name to whether it tells match probabilities."""
    captions, _ = in_a_line(table["captions"])
    if "scores" not in [field.name for field in captions.type]:
        return {}
    scores = pc.list_flatten(pc.struct_field(captions, "scores"))
    tells = pc.is_valid(pc.struct_field(scores, "itm"))
    both = pa.table({"judge": pc.struct_field(scores, "judge"), "tells": tells})
    found = both.group_by("judge").aggregate([("tells", "any")]).to_pylist()
    return {one["judge"]: one["tells_any"] for one in sorted(found, key=lambda one: one["judge"])}


def judges_of_dataset(dataset: Dataset) -> dict[str, bool]:
    """As `judges_of`, of the first shard that was judged: one run judges them all."""
    tables = (shard.table for shard in dataset.shards())
    return next(filter(None, map(judges_of, tables)), {})


@dataclass(frozen=True)
class Written:
    """The kept captions of a table that models wrote."""

    places: np.ndarray
    """int64[M]: where they stand among all captions of its rows."""
    scores: np.ndarray
    """float32[M, 2]: what the best have most of, and what settles ties."""
    rows: np.ndarray
    """int64[M]: the row of each."""
    instead: np.ndarray
    """int64[M]: where the best web caption of that row stands which was not kept, though it reaches
    its threshold; -1 where there is none, or the row keeps one of the web anyway."""


@dataclass(frozen=True)
class Choice:
    """What is chosen of a table of candidates."""

    statuses: np.ndarray
    """object[N]: of all captions of its rows, in order."""
    num_web: int
    """Kept captions of judged pictures that the web gave."""
    written: Written

    def without(self, over: np.ndarray) -> np.ndarray:
        """object[N]: the statuses with some of `written` over the budget, bool[M]; a row that
        keeps nothing then keeps the web caption that it has instead."""
        statuses, written = self.statuses.copy(), self.written
        statuses[written.places[over]] = OVER_BUDGET
        bare = ~np.isin(written.rows, written.rows[~over]) & (written.instead >= 0)
        statuses[written.instead[bare]] = KEPT
        return statuses


def choose(table: pa.Table, config: SelectionConfig) -> Choice:
    """Apply thresholds, then keep the best captions of each picture.

    Pictures without any score were not judged (held-out ones are not), and stay as they are.

    Args:
        table: `schemas.CANDIDATES`.
        config: resolved.

    Raises:
        DatasetError: a caption of a judged picture has no score of the judge; it is named.
    """
    captions, row = in_a_line(table["captions"])
    scores = pc.struct_field(captions, "scores")
    statuses = strings(captions, "status")
    is_written = strings(captions, "source") == SYNTHETIC
    is_judged = np.zeros(len(table), bool)
    is_judged[row[pc.list_value_length(scores).to_numpy() > 0]] = True
    offered = (statuses == KEPT) & is_judged[row]
    itc, itm = scores_by(config.judge, scores)
    first, second = (itm, itc) if config.by == "itm" else (itc, itm)
    for at in np.flatnonzero(offered & np.isnan(first))[:1]:
        uid = table.column("uid")[row[at]].as_py().hex()
        raise DatasetError(f"picture {uid}: a caption has no {config.by} of {config.judge}")

    for of_source, least in (
        (~is_written, config.web_threshold),
        (is_written, config.synthetic_threshold),
    ):
        if least is not None:
            statuses[offered & of_source & (first < least)] = BELOW_THRESHOLD

    ranks = np.stack([first, np.nan_to_num(second)], axis=1)
    left = np.flatnonzero(offered & (statuses == KEPT))
    place = _places(row[left], ranks[left])
    if config.top_k is not None:
        statuses[left[place >= config.top_k]] = NOT_BEST
    is_web, is_kept = ~is_written[left], statuses[left] == KEPT
    instead = _best_of_rows(len(table), row[left], place, is_web)
    instead[instead >= 0] = left[instead[instead >= 0]]
    web, written = left[is_web & is_kept], left[~is_web & is_kept]
    instead[row[web]] = -1
    told = Written(written, ranks[written], row[written], instead[row[written]])
    return Choice(statuses, len(web), told)


def over_budget(parts: Sequence[Written], num_web: int, share: float) -> list[np.ndarray]:
    """Which written captions go, so that no more than a share of all that are kept are written.

    Those that score highest stay, of equal ones the first, and as many as can: a picture that
    loses all keeps the web caption that it has instead, so more of them may stay beside it.

    Args:
        parts: those of a whole dataset, table by table.
        num_web: web captions kept beside them.
        share: 0 to 1.

    Returns:
        bool[M] for each part.
    """
    if not parts:
        return []
    scores, rows, instead = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("scores", "rows", "instead")
    )
    ends = np.cumsum([len(part.rows) for part in parts])
    pictures = np.stack([np.searchsorted(ends, np.arange(len(rows)), side="right"), rows], axis=1)
    order = _best_first(scores)
    _, best = np.unique(pictures[order], return_index=True, axis=0)
    needless = np.zeros(len(order) + 1, np.int64)  # at n: web captions that nobody needs once the
    needless[1 + best] = instead[order][best] >= 0  # best n of the written ones stay
    num_web += int(needless.sum())
    exact = Fraction(str(share)).limit_denominator(1_000_000)
    stay = np.arange(len(order) + 1)
    web = num_web - np.cumsum(needless)
    fits = stay * (exact.denominator - exact.numerator) <= web * exact.numerator
    over = np.ones(len(order), bool)
    over[order[: int(fits.sum()) - 1]] = False
    return np.split(over, ends[:-1])


def with_statuses(table: pa.Table, statuses: np.ndarray) -> pa.Table:
    """A table of candidates whose captions have these statuses, object[N]."""
    column = table["captions"].combine_chunks()
    captions, _ = in_a_line(table["captions"])
    kind = CANDIDATES.field("captions").type
    names = [field.name for field in kind.value_type]
    values = {name: pc.struct_field(captions, name) for name in names}
    values["status"] = pa.array(statuses, pa.string())
    changed = pa.StructArray.from_arrays(list(values.values()), fields=list(kind.value_type))
    counts = pc.list_value_length(column).fill_null(0).to_numpy()
    offsets = pa.array(np.cumsum([0, *counts]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, changed, type=kind, mask=column.is_null())
    return pa.table([table["uid"], lists, table["split"]], schema=CANDIDATES)


def scores_by(judge: str | None, scores: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """itc and itm, float32[N], of each caption by one judge; NaN where it told none.

    Args:
        judge: its name.
        scores: of each caption (`schemas.SCORE`).
    """
    flat = pc.list_flatten(scores)
    by_judge = pc.equal(pc.struct_field(flat, "judge"), judge)
    caption = pc.list_parent_indices(scores).filter(by_judge).to_numpy()
    told = np.full((2, len(scores)), np.nan, np.float32)
    for number, name in enumerate(("itc", "itm")):
        values = pc.struct_field(flat, name).filter(by_judge)
        told[number, caption] = values.to_numpy(zero_copy_only=False)
    return told[0], told[1]


def _best_first(scores: np.ndarray, *before: np.ndarray) -> np.ndarray:
    """int64[N]: an order by float32[N, 2], the highest first; equal ones stay as they stand.

    Whatever is in `before` counts more than the scores, the last of it most, the lowest first.
    """
    return np.lexsort((-scores[:, 1], -scores[:, 0], *before))


def _places(row: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """int64[N]: how many of the same row are better than each."""
    order = _best_first(scores, row)
    places = np.empty(len(row), np.int64)
    places[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return places


def _best_of_rows(num_rows: int, row: np.ndarray, place: np.ndarray, of: np.ndarray) -> np.ndarray:
    """int64[rows]: of each row the number of its best among some, bool[N]; -1 where there is none.

    Args:
        num_rows: how many rows there are.
        row, place: of N captions, as `_places` tells.
        of: bool[N], which captions count.
    """
    some = np.flatnonzero(of)
    some = some[np.argsort(-place[some])]
    best = np.full(num_rows, -1)
    best[row[some]] = some  # the last one of a row stays
    return best
