"""Results of an evaluation as lines for people: percent, with 95% intervals."""

from collections.abc import Iterator, Mapping
from typing import Any

from indexes.intervals import Estimate
from indexes.recall import AT, DIRECTIONS, Recall

LABELS = {
    "q_former": "ITC alone",
    "reranked": "ITC, then ITM",
    "ridge": "ridge control",
    "chance": "chance",
}
_NAME, _CELL = 16, 20


def table(result: Mapping[str, Any], recalls: Mapping[str, Recall]) -> Iterator[str]:
    """The lines.

    Args:
        result: what evaluation.json holds.
        recalls: its recalls.
    """
    yield (
        f"{result['split']}: {result['num_pictures']:,} pictures, "
        f"{result['num_captions']:,} captions; recall in %, 95% intervals"
    )
    if result["rerank"]:
        yield (
            f"re-ranked by ITM: the best {result['rerank']['k']:,} of each query, "
            f"{result['rerank']['num_pairs']:,} pairs"
        )
    heads = "".join(f"{head:>{_CELL}}" for head in (*(f"R@{k}" for k in AT), "median rank"))
    for direction in DIRECTIONS:
        yield f"{direction.replace('_', ' '):<{_NAME}}" + heads
        for name, found in recalls.items():
            of_pictures = direction == DIRECTIONS[0]
            shares = found.picture_to_text if of_pictures else found.text_to_picture
            median = found.picture_median if of_pictures else found.text_median
            cells = [*map(percent, shares.values()), _rank(median)]
            yield f"  {LABELS[name]:<{_NAME - 2}}" + "".join(f"{it:>{_CELL}}" for it in cells)
    itm = Estimate(**result["itm"]["accuracy"])
    yield (
        f"ITM accuracy {percent(itm)} on {result['itm']['num_pairs']:,} pairs, two in three of "
        "them no pairs (prior 66.7)"
    )
    yield _leaks(result["leaks"])


def percent(share: Estimate) -> str:
    """A share in percent, with its interval where it has one."""
    interval = f" ({100 * share.low:.1f}-{100 * share.high:.1f})" if share.high > share.low else ""
    return f"{100 * share.value:.1f}{interval}"


def estimate_line(name: str, found: Estimate) -> str:
    """A number that is told times 100, with its interval."""
    return f"{name:<{_NAME}}{found.value:.1f} ({found.low:.1f}-{found.high:.1f})"


def _rank(median: Estimate) -> str:
    value, low, high = (round(each, 1) for each in (median.value, median.low, median.high))
    return f"{value:g}" + (f" ({low:g}-{high:g})" if high > low else "")


def _leaks(leaks: Mapping[str, Any] | None) -> str:
    if leaks is None:
        return "pictures that were trained on: not looked for; name the pairs with --training"
    kinds = ", ".join(f"{leaks[kind]:,} {said}" for kind, said in _KINDS.items())
    return f"pictures that were trained on: {leaks['num_pictures']:,} ({kinds})"


_KINDS = {"same_uid": "by uid", "same_pixels": "of equal pixels", "alike": "alike"}
