"""Candidates: the captions that compete for a picture, the web's and those that a model wrote."""

import re
from collections.abc import Sequence
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.accounting import Account
from pipeline.caption_filters import CAPTION_FILTERS, RecurringFilter, filter_captions
from pipeline.captions import Caption
from pipeline.captions import judge as judge_text
from pipeline.filters import Filter
from pipeline.recurring import RECURRING
from pipeline.schemas import CANDIDATES, KEPT

WEB, SYNTHETIC = "web", "synthetic"
"""Sources of captions."""
NOT_BEST, BELOW_THRESHOLD, OVER_BUDGET = (
    "rejected:not_best",
    "rejected:below_threshold",
    "rejected:over_budget",
)
"""Statuses of captions that `pipeline.selection` did not choose."""
OFFERED = (KEPT, NOT_BEST, BELOW_THRESHOLD, OVER_BUDGET)
"""Statuses of captions that nothing is wrong with, whether they were chosen or not."""

_WORD = re.compile(r"\w+")
_SAME_WORDS = re.compile(r"(?<!\S)(\S+(?: \S+)*?)(?: \1){2,}(?!\S)")
_SAME_CHARACTERS = re.compile(r"(.+?)\1{2,}")


class Score(TypedDict):
    """What one judge says of a caption (`schemas.SCORE`)."""

    judge: str
    itc: float
    itm: float | None


class ScoredCaption(Caption):
    """A caption with its scores, as it lies in a dataset (`schemas.SCORED_CAPTION`)."""

    scores: list[Score]


def filters_of_written(name: str) -> tuple[Filter, ...]:
    """The filters of a set that judge a text by itself; a key of CAPTION_FILTERS names the set."""
    return tuple(its for its in CAPTION_FILTERS[name] if not isinstance(its, RecurringFilter))


def candidates_of(
    earlier: Sequence[Sequence[Caption]],
    written: Sequence[Sequence[str]],
    filters: Sequence[Filter],
) -> list[list[ScoredCaption]]:
    """The captions that compete for some pictures, not scored yet.

    The web's captions keep what curate said of them. Of an earlier round, the web's compete again
    whatever was chosen then, and of those written only the chosen ones. A text that was written now
    is cleaned as the web's are, and rejected where a part of it is repeated (`repeats`), a filter
    refuses it, or an earlier caption of the picture is the same but for capitals.

    Args:
        earlier: what each picture has, of `pairs` or of `captions`.
        written: what was written of each.
        filters: of `filters_of_written`; their patterns are made ready in each call, so that one
            for many pictures is much faster.
    """
    cleaned = filter_captions([[_clean(text) for text in its] for its in written], filters, _NONE)
    return [_competing(*both) for both in zip(earlier, cleaned, strict=True)]


def repeats(text: str) -> bool:
    """Whether words stand in a text three times in a row, or over half of it is such characters.

    Capitals and punctuation aside: "a dog, a dog, a dog", or "no no no", or "bookbookbook".
    """
    plain = " ".join(_WORD.findall(text.casefold()))
    same = (len(found.group()) for found in _SAME_CHARACTERS.finditer(plain))
    return bool(_SAME_WORDS.search(plain)) or max(same, default=0) * 2 > len(plain)


def unscored(captions: Sequence[Caption] | None) -> list[ScoredCaption] | None:
    """The captions of a picture that nobody judges, as they are; None of one taken down."""
    if captions is None:
        return None
    return [_unscored(caption, caption["status"]) for caption in captions]


def is_scored(caption: Caption) -> bool:
    """Whether judges see a caption: one on offer, or what the web said, unless that is nothing."""
    return caption["status"] in OFFERED or (caption["source"] == WEB and bool(caption["text"]))


def texts_to_score(captions: Sequence[Caption]) -> list[str]:
    """The texts of a picture's captions that judges see, in order."""
    return [caption["text"] for caption in captions if is_scored(caption)]


def with_scores(
    captions: Sequence[ScoredCaption], judge: str, scores: Sequence[tuple[float, float | None]]
) -> list[ScoredCaption]:
    """The captions of a picture with what one more judge says of them.

    Args:
        captions: of the picture.
        judge: its name.
        scores: (itc, itm) of each text of `texts_to_score`; itm is None for a judge without it.

    Raises:
        ValueError: there are not as many scores as texts.
    """
    scored = [caption for caption in captions if is_scored(caption)]
    if len(scored) != len(scores):
        raise ValueError(f"{len(scores)} scores of {judge} for {len(scored)} captions")
    told = iter(scores)
    return [
        ScoredCaption(**{**caption, "scores": [*caption["scores"], _score(judge, *next(told))]})
        if is_scored(caption)
        else caption
        for caption in captions
    ]


def candidate_rows(
    uids: Sequence[bytes],
    captions: Sequence[Sequence[ScoredCaption] | None],
    splits: Sequence[str | None],
) -> pa.Table:
    """Rows of `candidates`.

    Args:
        uids: of all rows.
        captions: of each row; None where the picture was taken down, which becomes null.
        splits: of each row.
    """
    columns = {"uid": list(uids), "captions": list(captions), "split": list(splits)}
    return pa.table(columns, schema=CANDIDATES)


def caption_account(table: pa.Table) -> Account:
    """How many captions of some rows are kept, and why the others are not."""
    flat = pc.list_flatten(table.column("captions"))
    return Account.of(pc.struct_field(flat, "status").to_pylist())


_NONE = RECURRING.empty_table()


def _competing(earlier: Sequence[Caption], cleaned: Sequence[Caption]) -> list[ScoredCaption]:
    """Those of one picture: what it had and what was written."""
    captions = [
        _unscored(caption, KEPT if caption["status"] in OFFERED else caption["status"])
        for caption in earlier
        if caption["source"] != SYNTHETIC or caption["status"] == KEPT
    ]
    seen = {caption["text"].casefold() for caption in captions}
    for caption in cleaned:
        folded, status = caption["text"].casefold(), caption["status"]
        captions.append(
            _unscored(
                caption, "rejected:duplicate" if folded in seen and status == KEPT else status
            )
        )
        seen.add(folded)
    return captions


def _clean(text: str) -> Caption:
    caption = judge_text(Caption(text=text, source=SYNTHETIC, status=KEPT))
    if caption["status"] == KEPT and repeats(caption["text"]):
        caption["status"] = "rejected:repeats"
    return caption


def _unscored(caption: Caption, status: str) -> ScoredCaption:
    return ScoredCaption(text=caption["text"], source=caption["source"], status=status, scores=[])


def _score(judge: str, itc: float, itm: float | None) -> Score:
    return Score(judge=judge, itc=itc, itm=itm)
