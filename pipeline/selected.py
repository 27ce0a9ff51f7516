"""What a selection left of candidates, counted for people."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.candidates import OFFERED, SYNTHETIC
from pipeline.captions import in_a_line, strings
from pipeline.dataset import Dataset
from pipeline.diversity import Diversity, added_up, share_of
from pipeline.schemas import KEPT
from pipeline.storage import Folder

SUMMARY = "summary.json"
"""The file in `candidates` and `captions` with what is in them, for people and reports; part of no
digest."""


@dataclass(frozen=True)
class Selected:
    """Counts over the rows of `captions`; parts of a dataset are counted apart and added up.

    A caption is on offer where nothing is wrong with it, chosen or not. Captions are counted of
    judged pictures alone, unless their name says otherwise.
    """

    pictures: int
    """Rows that are not taken down."""
    judged: int
    """Of these, with scores."""
    without_caption: int
    """Pictures of which no caption is kept; trainings leave them out."""
    without_web_caption: int
    """Of these, those that had none of the web on offer either."""
    web: int
    """Web captions on offer."""
    web_kept: int
    web_replaced: int
    """Not kept, and a synthetic caption of the picture is."""
    synthetic: int
    """On offer of those that a model wrote."""
    synthetic_kept: int
    synthetic_unjudged: int
    """Kept ones of an earlier round, of pictures that nobody judged in this one."""
    web_diversity: Diversity
    """Of the kept ones."""
    synthetic_diversity: Diversity
    """Of the kept ones."""

    @staticmethod
    def of(table: pa.Table) -> "Selected":
        """Count some rows of `captions`."""
        captions, row = in_a_line(table["captions"])
        text, source, status = (strings(captions, name) for name in ("text", "source", "status"))
        scores = pc.list_value_length(pc.struct_field(captions, "scores")).to_numpy()

        def rows_with(some: np.ndarray) -> np.ndarray:
            """bool[rows]: which rows have a caption among these, bool[N]."""
            found = np.zeros(len(table), bool)
            found[row[some]] = True
            return found

        is_synthetic, is_kept = source == SYNTHETIC, status == KEPT
        is_offered = np.isin(status, OFFERED)
        judged = rows_with(scores > 0)
        here = table["captions"].is_valid().to_numpy()
        bare = here & ~rows_with(is_kept)
        web, synthetic = (judged[row] & is_offered & its for its in (~is_synthetic, is_synthetic))
        has_synthetic = rows_with(synthetic & is_kept)
        return Selected(
            pictures=int(here.sum()),
            judged=int(judged.sum()),
            without_caption=int(bare.sum()),
            without_web_caption=int((bare & ~rows_with(is_offered & ~is_synthetic)).sum()),
            web=int(web.sum()),
            web_kept=int((web & is_kept).sum()),
            web_replaced=int((web & ~is_kept & has_synthetic[row]).sum()),
            synthetic=int(synthetic.sum()),
            synthetic_kept=int((synthetic & is_kept).sum()),
            synthetic_unjudged=int((~judged[row] & is_synthetic & is_kept).sum()),
            web_diversity=Diversity.of(text[web & is_kept].tolist()),
            synthetic_diversity=Diversity.of(text[synthetic & is_kept].tolist()),
        )

    @staticmethod
    def total(parts: Iterable["Selected"]) -> "Selected":
        """The sum of several."""
        return added_up(parts, _added, lambda part: part.web_kept + part.synthetic_kept)

    def to_json(self) -> dict[str, Any]:
        """The counts, their shares and measures of diversity, as summary.json holds them."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{name: value for name, value in counts.items() if isinstance(value, int)},
            "replaced_share": share_of(self.web_replaced, self.web),
            "synthetic_share": share_of(self.synthetic_kept, self.web_kept + self.synthetic_kept),
            "diversity": {
                "web": self.web_diversity.to_json(),
                "synthetic": self.synthetic_diversity.to_json(),
            },
        }


def summary_of(dataset: Dataset) -> dict[str, Any]:
    """What summary.json holds of a dataset of `candidates` or `captions`, counted now."""
    columns = ["uid", "captions", "split"]
    tables = (dataset.shard(number, columns=columns).table for number in dataset.records)
    return Selected.total(map(Selected.of, tables)).to_json()


def read_summary(folder: Folder) -> dict[str, Any] | None:
    """summary.json; None where there is none, or not all that is told is in it.

    Raises:
        DatasetError: it is not JSON.
    """
    found, needed = folder.read_json(SUMMARY), Selected.total([]).to_json()
    if not isinstance(found, dict) or not needed.keys() <= found.keys():
        return None
    sources = found["diversity"]
    for name, measures in needed["diversity"].items():
        its = sources.get(name) if isinstance(sources, dict) else None
        if not isinstance(its, dict) or not measures.keys() <= its.keys():
            return None
    return found


def told(summary: Mapping[str, Any]) -> Iterator[str]:
    """The content of the summary.json of `captions` as lines for people."""
    web, kept, replaced = (summary[name] for name in ("web", "web_kept", "web_replaced"))
    yield f"{summary['judged']:,} of {summary['pictures']:,} pictures were judged"
    yield (
        f"web captions: {web:,} on offer, {kept:,} kept, {replaced:,} replaced "
        f"({100 * summary['replaced_share']:.1f}%), {web - kept - replaced:,} dropped"
    )
    yield (
        f"synthetic captions: {summary['synthetic']:,} on offer, {summary['synthetic_kept']:,} "
        f"kept, {100 * summary['synthetic_share']:.1f}% of all that are kept of judged pictures"
    )
    if unjudged := summary["synthetic_unjudged"]:
        yield f"synthetic captions of pictures that were not judged: {unjudged:,} stay kept"
    yield (
        f"pictures without a caption: {summary['without_caption']:,}, of which "
        f"{summary['without_web_caption']:,} had none of the web either"
    )
    yield from _diversity_told("kept", summary)


def told_of_candidates(summary: Mapping[str, Any]) -> Iterator[str]:
    """The content of the summary.json of `candidates` as lines for people."""
    yield (
        f"on offer for {summary['judged']:,} judged pictures of {summary['pictures']:,}: "
        f"{summary['web']:,} captions of the web, {summary['synthetic']:,} synthetic ones"
    )
    yield from _diversity_told("offered", summary)


def _diversity_told(which: str, summary: Mapping[str, Any]) -> Iterator[str]:
    for source, measures in summary["diversity"].items():
        yield (
            f"{which} {source} captions: {measures['mean_words']:.1f} words, distinct-1 "
            f"{measures['distinct_1']:.4f}, distinct-2 {measures['distinct_2']:.4f}, "
            f"{100 * measures['identical_share']:.1f}% like another one"
        )


def _added(parts: Sequence[Selected]) -> Selected:
    sums: dict[str, Any] = {}
    for field in fields(Selected):
        values = [getattr(part, field.name) for part in parts]
        sums[field.name] = (Diversity.total if field.type is Diversity else sum)(values)
    return Selected(**sums)
