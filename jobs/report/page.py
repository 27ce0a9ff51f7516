"""The report as HTML: what the contents say, in the words and numbers of the page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.report.competition import Competition
from jobs.report.contents import Contents, Made, Stage, Training
from jobs.report.examples import Example
from jobs.report.gallery import Gallery
from jobs.report.plots import (
    DIRECTIONS,
    MODELS,
    QUANTITIES,
    RANKS,
    SOURCES,
    retrieval_plots,
    score_plots,
    training_plots,
)
from jobs.wording import duration, instant, percent
from pipeline.accounting import Account

_TEMPLATE = "report.html.jinja"
_SAID = {
    "raw": "fetched and decoded",
    "pairs": "equal pictures united, captions judged",
    "features": "encoded",
    "candidates": "that compete, with their scores",
    "captions": "chosen by their scores",
    "image_embeddings": "pictures embedded",
    "text_embeddings": "captions embedded",
}
_HEADLINE = ("pairs", "stage 1", "stage 2", "index")
"""Kinds whose digests stand at the head."""
_DIGITS = 12
"""Of a digest that are shown."""


def render(
    contents: Contents,
    examples: Mapping[str, Sequence[Example]],
    competitions: Sequence[Competition],
    gallery: Gallery,
) -> str:
    """The page; equal contents give equal bytes.

    Every text of the run is escaped: captions are anybody's.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "instant": instant}
    return environment.get_template(_TEMPLATE).render(
        run=contents,
        examples=examples,
        gallery=gallery,
        competitions=[
            (one, competition_rules(one), list(score_plots(one, f"competition-{n}")))
            for n, one in enumerate(competitions)
        ],
        sources=SOURCES,
        quantities=QUANTITIES,
        facts=list(_facts(contents)),
        pictures=[_account(s.kind, s.name, s.pictures) for s in _told(contents.stages)],
        captions=[_account(s.kind, s.name, s.captions) for s in contents.stages if s.captions],
        splits=[(s.name, s.splits) for s in contents.stages if sum(s.splits.values())],
        trainings=[
            (t, training_plots(t, f"training-{n}"), _pace(t))
            for n, t in enumerate(contents.trainings)
        ],
        evaluations=[
            (name, value, retrieval_table(value), retrieval_plots(value, f"retrieval-{n}"))
            for n, (name, value) in enumerate(contents.evaluations)
        ],
        directions=DIRECTIONS,
        total_s=sum(step.seconds for step in contents.steps),
        longest_s=max([1e-9, *(step.seconds for step in contents.steps)]),
        lineage=lineage_rows(contents.made),
        digests=[(m.name, m.digest[:_DIGITS]) for m in contents.made if m.kind in _HEADLINE],
    )


def _facts(contents: Contents) -> Iterator[tuple[str, str, str]]:
    """The few numbers that stand at the head: what, how much, and of what."""
    by_kind = {stage.kind: stage for stage in contents.stages}
    raws = [stage for stage in contents.stages if stage.kind == "raw"]
    if raws:
        again = _retries(contents.made)
        fetched = sum(stage.pictures.num_kept for stage in raws)
        asked = sum(stage.pictures.num_in for stage in raws if stage.name not in again)
        yield "Pictures fetched", f"{fetched:,}", f"of {asked:,} asked for"
    if pairs := by_kind.get("pairs"):
        captions = pairs.captions.num_kept if pairs.captions else 0
        yield "Pairs", f"{pairs.pictures.num_kept:,}", f"with {captions:,} captions"
    for _, value in contents.evaluations[:1]:
        for key, label in DIRECTIONS.items():
            at_1 = value["recall"].get("q_former", {}).get(key, {}).get("1")
            control = value["recall"].get("ridge", {}).get(key, {}).get("1")
            beside = f"ridge {percent(control['value'])}" if control else value["split"]
            if at_1:
                yield f"{label}, R@1", percent(at_1["value"]), beside
    total = sum(step.seconds for step in contents.steps)
    if total:
        yield "Time", duration(total), f"in {len(contents.steps)} commands"


def _retries(made: Sequence[Made]) -> set[str]:
    """Names of raws that fetched again what another one here had lost: no further pictures."""
    raws = [m for m in made if m.kind == "raw"]
    digests = {raw.digest for raw in raws}
    return {r.name for r in raws if any(p.digest in digests for p in r.lineage.parents)}


# The funnel


def _told(stages: Sequence[Stage]) -> list[Stage]:
    """Stages in which pictures may be lost; of the others those alone that lost any."""
    return [s for s in stages if s.kind in ("raw", "pairs", "features") or s.pictures.dropped]


def _account(kind: str, name: str, account: Account) -> dict[str, Any]:
    """One stage of the funnel: kept, and every reason, the most frequent first."""
    total = max(1, account.num_in)
    reasons = sorted(account.dropped.items(), key=lambda item: (-item[1], item[0]))
    return {
        "name": name,
        "said": _SAID.get(kind, kind),
        "account": account,
        "kept_share": account.num_kept / total,
        "reasons": [(reason, count, count / total) for reason, count in reasons],
    }


# Training and retrieval


def _pace(training: Training) -> str:
    """How fast it went, from the last half of its lines."""
    steps, rates = training.curve("train", "pairs_per_s")
    waits = training.curve("train", "data_wait_s")[1]
    if not rates:
        return ""
    half = len(rates) // 2
    text = f"{steps[-1]:,} steps, {_middle(rates[half:]):,.0f} pairs/s"
    if waits:
        text += f", {1000 * _middle(waits[half:]):.1f} ms of waiting for data a step"
    return text


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def retrieval_table(evaluation: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """A row for each model: its recalls at 1, 5 and 10, in both directions in turn.

    What was not measured is None.
    """
    rows = []
    for key, label in MODELS.items():
        if (recall := evaluation["recall"].get(key)) is not None:
            cells = [recall[direction].get(k) for direction in DIRECTIONS for k in RANKS]
            rows.append((label, cells))
    return rows


# Captions that competed

_METHODS = {
    "nucleus": "by nucleus sampling, p = {top_p}",
    "beam": "by a search of {num_beams} beams",
    "greedy": "word by word",
}


def competition_rules(competition: Competition) -> list[str]:
    """How captions were written, judged and chosen, in a sentence each."""
    return [*_writing(competition), *_judging(competition), *_choosing(competition)]


def _writing(competition: Competition) -> Iterator[str]:
    generation = competition.writing.get("generation")
    if generation:
        num, method = generation["num_captions"], _METHODS[generation["method"]]
        told = f"{num:,} caption{'s' if num > 1 else ''} a picture were written"
        yield f"{told} {method.format(**generation)}."
    if limit := competition.writing.get("limit"):
        yield f"No more than {limit:,} pictures were captioned and judged."


def _judging(competition: Competition) -> Iterator[str]:
    yield f"{competition.judge} judged {competition.num_judged:,} pictures."
    if others := [name for name in competition.judges if name != competition.judge]:
        yield f"The scores by {', '.join(others)} are not shown here."
    if competition.judges_itself:
        yield "It wrote the captions too, and such a judge forgives what it wrote itself."


def _choosing(competition: Competition) -> Iterator[str]:
    if competition.chosen_by is None:
        yield "None is chosen yet."
        return
    rule, quantity = competition.selection, QUANTITIES[competition.by]
    if not rule:
        yield f"They were chosen by {competition.chosen_by}."
    if (num := rule.get("top_k")) is not None:
        yield f"Kept of each picture: the best {num:,} by {quantity}."
    for option, of in (("web_threshold", "the web's"), ("synthetic_threshold", "those written")):
        if (least := rule.get(option)) is not None:
            yield f"Of {of} only what scores {least:g} or more."
    if (share := rule.get("synthetic_share")) is not None:
        yield f"At most {percent(share)} of all that judged pictures keep are written ones."
    if competition.trained:
        yield f"Trained on what was kept: {', '.join(competition.trained)}."
    else:
        yield "Nothing in this run was trained on it."


# Lineage


def lineage_rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    """What was made of which: digests shortened, parents by name where they are here."""
    names = {one.digest: one.name for one in made}
    rows = []
    for one in made:
        parents = [
            (names.get(p.digest) or _elsewhere(p.kind), p.digest[:_DIGITS])
            for p in one.lineage.parents
        ]
        frozen = [
            _frozen(role, value, names)
            for role, values in one.lineage.frozen.items()
            for value in (values if isinstance(values, list) else [values])
        ]
        rows.append(
            {
                "name": one.name,
                "kind": one.kind,
                "size": one.size,
                "digest": one.digest[:_DIGITS],
                "job": one.lineage.job,
                "parents": parents,
                "frozen": frozen,
            }
        )
    return rows


def _elsewhere(kind: str) -> str:
    """A parent that lies not in this run; a source never does."""
    return kind if kind == "source" else f"{kind}, not in this run"


def _frozen(role: str, value: Any, names: Mapping[str, str]) -> tuple[str, str]:
    """A frozen model or a checkpoint: its name, and the digest of its weights."""
    value = value if isinstance(value, Mapping) else {"name": value}
    digest = str(value.get("digest") or value.get("weights_digest") or "")
    return str(names.get(digest) or value.get("name") or role), digest[:_DIGITS]
