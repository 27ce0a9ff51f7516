"""What became of the faults that were planted in the web: those found, by which name."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.demo.scenes import Scene
from jobs.demo.web import Page, num_planted
from pipeline.candidates import OFFERED, WEB
from pipeline.captions import Caption
from pipeline.dataset import Dataset
from pipeline.errors import ViaductError
from pipeline.schemas import KEPT

CAUGHT_AS = {
    "missing": "failed:http_404",
    "html": "failed:not_a_picture",
    "truncated": "failed:truncated",
    "duplicate": "duplicate",
    "says_nothing": "rejected",
}
"""What ingest and curate must call each planted fault that they can see."""

WRONG = "wrong_caption"
"""The one that only a judge can see, who may be wrong."""


def planted_faults(pages: Sequence[Page], home: Path) -> dict[str, dict[str, Any]]:
    """Each kind of planted fault: how many there are, how many were found, and as what.

    Of wrong captions a judge saw some only (`judged`); beside how many of them it left out stands
    how many true ones it did (`true`, `true_left_out`), all of them counted by pictures.

    Also written to planted.json, for the report.
    """
    raw, pairs = (Dataset.open(str(home / kind), kind).manifest for kind in ("raw", "pairs"))
    found = Counter(raw.pictures.dropped) + Counter(pairs.pictures.dropped)
    captions = pairs.captions.dropped if pairs.captions else {}
    found["rejected"] = sum(n for why, n in captions.items() if why.startswith("rejected:"))
    planted: dict[str, dict[str, Any]] = {}
    for fault, count in sorted(num_planted(pages).items()):
        reason = CAUGHT_AS.get(fault)
        caught = None if reason is None else found[reason]
        planted[fault] = {"planted": count, "found": caught, "as": reason}
    if WRONG in planted:
        planted[WRONG] |= _judged(pages, home)
    (home / "planted.json").write_text(json.dumps(planted, indent=1) + "\n")
    return planted


def verdict(planted: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each kind of planted fault.

    Raises:
        ViaductError: a fault that ingest or curate can see was missed or miscounted.
    """
    yield "\nplanted in the web        found"
    for fault, counts in planted.items():
        told = f"{fault:<16} {counts['planted']:>6}    {counts['found']:>6}"
        if fault == WRONG:
            yield (
                f"{told} not kept, of {counts['judged']} that were judged (of true ones "
                f"{counts['true_left_out']} of {counts['true']})"
            )
            continue
        yield f"{told} as {counts['as']}"
        if counts["found"] != counts["planted"]:
            raise ViaductError(
                f"{counts['planted']} {fault} planted, {counts['found']} found as {counts['as']}"
            )


def _judged(pages: Sequence[Page], home: Path) -> dict[str, int]:
    """Pictures whose captions were judged, wrong ones and true ones, and of how many none stayed.

    A picture may have both, where a page with true captions shows it too.
    """
    by_path = {page.path: page for page in pages}
    wrong: defaultdict[Scene, set[str]] = defaultdict(set)
    for page in pages:
        if page.fault == WRONG:
            wrong[page.scene].update(page.captions)
    counts = Counter(judged=0, found=0, true=0, true_left_out=0)
    for url, captions in _judged_captions(home):
        lies = wrong[by_path[urlsplit(url).path].scene]
        for its, all_of, none_left in (
            ([c for c in captions if c["text"] in lies], "judged", "found"),
            ([c for c in captions if c["text"] not in lies], "true", "true_left_out"),
        ):
            counts[all_of] += bool(its)
            counts[none_left] += bool(its) and all(c["status"] != KEPT for c in its)
    return dict(counts)


def _judged_captions(home: Path) -> Iterator[tuple[str, list[Caption]]]:
    """URL and captions of the web that were on offer, of each picture that was judged."""
    pairs = Dataset.open(str(home / "pairs"), "pairs")
    for shard in Dataset.open(str(home / "captions"), "captions").shards():
        urls = pairs.shard(shard.record.number, columns=["url"]).table.column("url").to_pylist()
        for url, captions in zip(urls, shard.table.column("captions").to_pylist(), strict=True):
            web = [c for c in captions if c["source"] == WEB and c["status"] in OFFERED]
            if any(caption["scores"] for caption in web):
                yield url, web
