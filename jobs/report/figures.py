"""Curves and bars as inline SVG, whose colours are the page's: they follow light and dark."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

_WIDTH_IN, _HEIGHT_IN = 4.9, 2.9

_COLOURS = {
    "#010001": "var(--muted)",
    "#010002": "var(--rule)",
    "#010003": "var(--card)",
    **{f"#0200{n:02x}": f"var(--series-{n})" for n in range(1, 5)},
}
"""Colours that nothing else has, which the page's own take the place of."""
_MUTED, _RULE, _CARD, *_SERIES = _COLOURS

_STYLE: Any = {  # of rcParams
    "svg.fonttype": "none",
    "svg.hashsalt": "viaduct",
    "font.size": 9.0,
    "text.color": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _RULE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    series: int
    """Its colour, from 0 to 3."""
    held_out: bool = False
    """Measured on held-out pairs: drawn dashed, with its points."""


@dataclass(frozen=True)
class Bars:
    """One bar in each group."""

    label: str
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


@dataclass(frozen=True)
class Histogram:
    """How the values of one kind lie."""

    label: str
    shares: Sequence[float]
    """Of its values, between each two edges."""


def curves_figure(
    name: str,
    curves: Sequence[Curve],
    *,
    level: tuple[float, str] | None = None,
    begins: tuple[float, str] | None = None,
    percent: bool = False,
) -> str:
    """Curves over the steps of a training.

    Args:
        name: of the figure, unique on its page; letters, digits and hyphens.
        curves: those without points are left out.
        level: a value to compare with, and its name.
        begins: a step from which something holds, and what.
        percent: values are shares.

    Returns:
        An SVG element.
    """
    with _axes() as (figure, axes):
        for curve in curves:
            if len(curve.steps):
                axes.plot(
                    curve.steps,
                    curve.values,
                    "--" if curve.held_out else "-",
                    marker="o" if curve.held_out or len(curve.steps) == 1 else "",
                    markersize=3.5,
                    color=_SERIES[curve.series],
                    label=curve.label,
                )
        if level is not None:
            axes.axhline(level[0], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
            place = axes.get_yaxis_transform()
            axes.text(0.995, level[0], level[1], ha="right", va="bottom", transform=place, size=8)
        if begins is not None:
            axes.axvline(begins[0], color=_MUTED, linewidth=1, linestyle=":")
            place = axes.get_xaxis_transform()
            axes.text(begins[0], 1.0, f" {begins[1]}", va="bottom", transform=place, size=8)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("step")
        axes.margins(x=0.02, y=0.12)
        _legend(figure, axes)
        return _svg(figure, name)


def bars_figure(name: str, groups: Sequence[str], bars: Sequence[Bars]) -> str:
    """Shares as bars in groups, with their intervals.

    Args:
        name: as for `curves_figure`.
        groups: labels below the groups.
        bars: one for each group, side by side.

    Returns:
        An SVG element.
    """
    with _axes() as (figure, axes):
        width = 0.8 / max(1, len(bars))
        for number, one in enumerate(bars):
            middles = [g - 0.4 + width * (number + 0.5) for g in range(len(groups))]
            axes.bar(middles, one.values, width * 0.9, color=_SERIES[number % 4], label=one.label)
            below = [v - low for v, low in zip(one.values, one.lows, strict=True)]
            above = [high - v for v, high in zip(one.values, one.highs, strict=True)]
            errors = [[max(0.0, e) for e in side] for side in (below, above)]
            axes.errorbar(
                middles, one.values, yerr=errors, fmt="none", ecolor=_MUTED, elinewidth=1, capsize=2
            )
            for x, value, high in zip(middles, one.values, one.highs, strict=True):
                axes.annotate(
                    f"{100 * value:.{1 if value < 0.1 else 0}f}",
                    (x, max(value, high)),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    size=8,
                )
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, min(1.15, 1.15 * max([0.05, *(h for one in bars for h in one.highs)])))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _legend(figure, axes)
        return _svg(figure, name)


def shares_figure(
    name: str,
    edges: Sequence[float],
    histograms: Sequence[Histogram],
    *,
    quantity: str,
    bounds: Sequence[tuple[float, str]] = (),
) -> str:
    """How values lie, as the share of them between each two edges.

    Args:
        name: as for `curves_figure`.
        edges: ascending, one more than shares.
        histograms: drawn over each other, so two or three.
        quantity: what the values are.
        bounds: values to mark, at most two, the lower one first, and their names.

    Returns:
        An SVG element.
    """
    with _axes() as (figure, axes):
        for number, one in enumerate(histograms):
            colour = _SERIES[number % 4]
            axes.stairs(one.shares, edges, color=colour, label=one.label, linewidth=1.6)
            axes.stairs(one.shares, edges, color=colour, fill=True, alpha=0.2)
        place = axes.get_xaxis_transform()
        for number, (value, said) in enumerate(bounds):
            axes.axvline(value, color=_MUTED, linewidth=1, linestyle=":")
            side = "right" if number < len(bounds) - 1 else "left"
            axes.text(value, 1.0, f" {said} ", ha=side, va="bottom", transform=place, size=8)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(quantity)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02, y=0.12)
        _legend(figure, axes)
        return _svg(figure, name)


@contextmanager
def _axes() -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        yield figure, figure.subplots()


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the axes, so that it never hides a curve."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=3, columnspacing=1.2)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element for a page: no prologue, no metadata, identifiers of its own."""
    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r"^<svg([^>]*)>", lambda m: f"<svg{_without_size(m[1])}>", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    for colour, own in _COLOURS.items():
        text = text.replace(colour, own)
    return text.strip()


def _without_size(attributes: str) -> str:
    """The element is as wide as its place; its shape stays, by its viewBox."""
    return re.sub(r'\s(?:width|height)="[^"]*"', "", attributes) + ' aria-hidden="true"'
