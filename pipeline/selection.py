"""Selection: which of a picture's candidates are kept, by the scores of one judge."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.candidates import BELOW_THRESHOLD, NOT_BEST, OVER_BUDGET, SYNTHETIC
from pipeline.captions import in_a_line, strings
from pipeline.errors import ConfigError, DatasetError
from pipeline.schemas import CANDIDATES, KEPT


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which captions are kept: first the thresholds, then the best of a picture, then the share."""

    judge: str | None = None
    """Whose scores count, by its name in the candidates, such as `clip:NAME`; needs no naming where
    there is one judge."""

    by: Literal["itm", "itc"] | None = None
    """What the best have most of: match probability (itm; ties by similarity) or similarity (itc);
    by default itm, or itc where the judge tells no match probability."""

    top_k: int | None = 2
    """Captions of a picture that are kept at most, the web's among them; `None` keeps all."""

    web_threshold: float | None = None
    """What a web caption must reach: match probability where the judge tells it, else similarity.
    """

    synthetic_threshold: float | None = None
    """What a caption that a model wrote must reach, likewise."""

    synthetic_share: float | None = None
    """Share of the kept captions that models may have written, 0 to 1; beyond it those go that
    score lowest over the whole dataset."""

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k: {self.top_k} is not positive")
        for name in ("web_threshold", "synthetic_threshold"):
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
            ConfigError: there is no such judge, none is named among several, or it tells no
                match probability.
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
        return replace(self, judge=judge, by=self.by or ("itm" if judges[judge] else "itc"))


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


@dataclass(frozen=True)
class Choice:
    """What is chosen of a table of candidates; N are all captions of its rows, in order."""

    statuses: np.ndarray
    """object[N]"""
    synthetic: np.ndarray
    """int64[M]: where among these N the kept captions are that models wrote."""
    scores: np.ndarray
    """float32[M, 2]: of these what the best have most of, and what settles ties."""
    num_web: int
    """Kept captions of judged pictures that the web gave."""

    def without(self, over: np.ndarray) -> "Choice":
        """The same with some of `synthetic` over the budget; bool[M] says which."""
        statuses = self.statuses.copy()
        statuses[self.synthetic[over]] = OVER_BUDGET
        return replace(self, statuses=statuses)


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

    reached = np.where(np.isnan(itm), itc, itm)
    for of_source, least in (
        (~is_written, config.web_threshold),
        (is_written, config.synthetic_threshold),
    ):
        if least is not None:
            statuses[offered & of_source & (reached < least)] = BELOW_THRESHOLD

    ranks = np.stack([first, np.nan_to_num(second)], axis=1)
    left = np.flatnonzero(offered & (statuses == KEPT))
    place = _places(row[left], ranks[left])
    if config.top_k is not None:
        statuses[left[place >= config.top_k]] = NOT_BEST
    kept = left[statuses[left] == KEPT]
    written = kept[is_written[kept]]
    return Choice(statuses, written, ranks[written], len(kept) - len(written))


def over_budget(scores: np.ndarray, num_web: int, share: float) -> np.ndarray:
    """bool[M]: which written captions go, so that they are at most a share of all that are kept.

    Args:
        scores: float32[M, 2], of the kept ones over the whole dataset, as in `Choice`; where both
            are equal the later one goes.
        num_web: kept captions of the web.
        share: 0 to 1.
    """
    over = np.ones(len(scores), bool)
    exact = Fraction(str(share))
    most = len(scores) if exact == 1 else int(num_web * exact / (1 - exact))
    over[_best_first(scores)[:most]] = False
    return over


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
