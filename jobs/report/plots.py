"""The report's figures: which metrics of a run go into which."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.report.competition import MEASURES, Competition
from jobs.report.contents import Training
from jobs.report.figures import (
    Bars,
    Curve,
    Histogram,
    bars_figure,
    curves_figure,
    shares_figure,
)
from jobs.wording import percent
from pipeline.candidates import SYNTHETIC, WEB

DIRECTIONS = {"picture_to_text": "Picture to text", "text_to_picture": "Text to picture"}
MODELS = {
    "q_former": "Q-Former",
    "reranked": "re-ranked by ITM",
    "ridge": "Ridge control",
    "chance": "Chance",
}
RANKS = ("1", "5", "10")
SOURCES = {WEB: "from the web", SYNTHETIC: "written by a model"}
QUANTITIES = {"itm": "match probability", "itc": "similarity"}
PRIOR = 2 / 3
"""Share of non-pairs that ITM is asked about: what always saying no is right in."""


@dataclass(frozen=True)
class Plot:
    """A figure with what it shows, for who sees it and who does not."""

    title: str
    svg: Markup
    says: str
    """What can be read off it, in words."""


def training_plots(training: Training, name: str) -> list[Plot]:
    """The figures of one training; a metric that it lacks has none."""
    if training.stage == 2:
        return list(_stage2_plots(training, name))
    return list(_stage1_plots(training, name))


def _stage1_plots(training: Training, name: str) -> Iterator[Plot]:
    losses = {"itc": "ITC", "itm": "ITM", "itg": "ITG"}
    yield from _plot(
        "Losses, nats", f"{name}-losses", training, losses, says=_ends(training, losses)
    )
    joined = training.curve("train", "itm")[0][:1]
    yield from _plot(
        "ITM accuracy",
        f"{name}-itm",
        training,
        {"itm_accuracy": "accuracy"},
        level=(PRIOR, "prior, 2/3"),
        begins=(joined[0], "ITM joined") if joined else None,
        percent=True,
        says=_ends(training, {"itm_accuracy": "ITM accuracy"}, share=True)
        + (f" ITM is first logged at step {joined[0]:,}." if joined else ""),
    )
    recalls = {
        "recall_at_1_picture_to_text": "picture to text",
        "recall_at_1_text_to_picture": "text to picture",
    }
    yield from _plot(
        "Recall at 1 during validation",
        f"{name}-recall",
        training,
        recalls,
        percent=True,
        says=_ends(training, recalls, share=True),
    )
    temperature = {"temperature": "temperature"}
    yield from _plot(
        "ITC temperature",
        f"{name}-temperature",
        training,
        temperature,
        says=_ends(training, temperature),
    )


def _stage2_plots(training: Training, name: str) -> Iterator[Plot]:
    loss, perplexity = {"loss": "loss"}, {"perplexity": "perplexity"}
    yield from _plot(
        "Loss of the captions, nats a token",
        f"{name}-loss",
        training,
        loss,
        says=_ends(training, loss),
    )
    yield from _plot(
        "Perplexity", f"{name}-perplexity", training, perplexity, says=_ends(training, perplexity)
    )


def _plot(
    title: str,
    name: str,
    training: Training,
    metrics: Mapping[str, str],
    *,
    says: str,
    **options: Any,
) -> Iterator[Plot]:
    """A figure of some metrics in training and on held-out pairs, if any of them was measured."""
    curves = []
    for number, (metric, label) in enumerate(metrics.items()):
        for split, suffix in (("train", ""), ("validation", ", held out")):
            steps, values = training.curve(split, metric)
            if steps:
                held_out = split == "validation"
                curves.append(Curve(label + suffix, steps, values, number, held_out))
    if curves:
        yield Plot(title, Markup(curves_figure(name, curves, **options)), says)


def _ends(training: Training, metrics: Mapping[str, str], *, share: bool = False) -> str:
    """The first and the last value of each metric, in a sentence each."""
    told = []
    for metric, label in metrics.items():
        for split, where in (("train", "training"), ("validation", "held-out pairs")):
            values = training.curve(split, metric)[1]
            if values:
                first, last = (percent(v) if share else f"{v:.3g}" for v in (values[0], values[-1]))
                told.append(f"{label} on {where}: {first} at first, {last} at last.")
    return " ".join(told)


def retrieval_plots(evaluation: Mapping[str, Any], name: str) -> list[Plot]:
    """A figure for each direction."""
    plots = []
    for direction, title in DIRECTIONS.items():
        bars, told = [], []
        for key, label in MODELS.items():
            found = evaluation["recall"].get(key, {}).get(direction, {})
            estimates = [found[k] for k in RANKS if k in found]
            if len(estimates) == len(RANKS):
                parts = ([e[part] for e in estimates] for part in ("value", "low", "high"))
                bars.append(Bars(label, *parts))
                told.append(f"{label} {', '.join(percent(e['value']) for e in estimates)}")
        if bars:
            svg = bars_figure(
                f"{name}-{direction.replace('_', '-')}", [f"R@{k}" for k in RANKS], bars
            )
            says = f"Recall at 1, 5 and 10: {'; '.join(told)}."
            plots.append(Plot(title, Markup(svg), says))
    return plots


def score_plots(competition: Competition, name: str) -> Iterator[Plot]:
    """A figure for each measure that the judge told."""
    for measure, by_source in competition.counts.items():
        total = np.sum(list(by_source.values()), axis=0)
        if not total.any():
            continue
        first, last = (0, len(total) - 1) if measure == "itm" else np.flatnonzero(total)[[0, -1]]
        edges = MEASURES[measure][first : last + 2]
        histograms, told = [], []
        for source, counts in by_source.items():
            if num := int(counts.sum()):
                label = f"{SOURCES[source]} ({num:,})"
                histograms.append(Histogram(label, (counts[first : last + 1] / num).tolist()))
                middle = MEASURES[measure][np.searchsorted(np.cumsum(counts), num / 2)]
                told.append(
                    f"{num:,} captions {SOURCES[source]}, half of them from about {middle:.2f} on"
                )
        bounds = _thresholds(competition) if measure == competition.by else []
        yield Plot(
            f"Scores by {QUANTITIES[measure]}",
            Markup(
                shares_figure(
                    f"{name}-{measure}",
                    edges.tolist(),
                    histograms,
                    quantity=QUANTITIES[measure],
                    bounds=bounds,
                )
            ),
            f"Shares of captions by {QUANTITIES[measure]}: {'; '.join(told)}.",
        )


def _thresholds(competition: Competition) -> list[tuple[float, str]]:
    """Those of web and written captions, the lower one first; equal ones are one."""
    web, written = (competition.selection.get(f"{of}_threshold") for of in ("web", "synthetic"))
    if web == written:
        return [] if web is None else [(web, "threshold")]
    told = [(web, "threshold, web"), (written, "threshold, written")]
    return sorted((value, said) for value, said in told if value is not None)
