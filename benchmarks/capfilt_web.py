"""The procedural web of benchmarks/capfilt.py: scenes whose truth is known, two captions in five
wrong or saying nothing.

web/pairs       `train` with the web's captions; `validation` and `test` with true ones
web/truth       the same rows, all captions true
clean/pairs     other scenes with true captions, which teach captioner and judge
"""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.demo.painting import SIDE_PX, paint
from jobs.demo.scenes import COLOURS, WORLDS, Scene, describe, draw_scene
from pipeline.accounting import Account
from pipeline.candidates import WEB, ScoredCaption, candidate_rows
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.schemas import CANDIDATES, KEPT, PAIRS
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.uids import uid_of_url

SHARD_ROWS = 1024
NOTHING = (
    "picture",
    "a picture",
    "photo of the day",
    "click here",
    "my drawing",
    "new",
    "image {n}",
)
"""Captions that say nothing; `{n}` is a number of chance."""


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """How large the web is, and how bad."""

    pages: int = 10_000
    clean: int = 2_000
    validation: int = 256
    """Of each of the two families."""
    test: int = 4_000
    wrong: float = 0.3
    """Share of pages with the caption of another scene."""
    nothing: float = 0.1
    """Share of pages whose caption says nothing."""
    worlds: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Page:
    """A picture with what the web says of it, and the truth."""

    number: int
    split: str
    web: str
    true: str
    fault: str | None
    """`wrong`, `nothing`, or None."""


def pages_of(config: WebConfig) -> tuple[list[Page], list[Page]]:
    """The pages of the web and the clean ones; the same for the same configuration."""
    splits = ["train"] * config.pages + ["validation"] * config.validation + ["test"] * config.test
    clean = ["train"] * config.clean + ["validation"] * config.validation
    scenes = [scene_of(number, config) for number in range(len(splits) + len(clean))]
    dice = np.random.default_rng((config.seed, 1))
    # True captions that others are wrong by are drawn apart from those of the scene itself.
    true = [describe(scene, dice)[0] for scene in scenes]
    other = [describe(scene, dice)[0] for scene in scenes]
    kinds = dice.choice(
        3, size=config.pages, p=(1 - config.wrong - config.nothing, config.wrong, config.nothing)
    )
    pages = []
    for number, split in enumerate(splits):
        fault = (None, "wrong", "nothing")[kinds[number]] if split == "train" else None
        web = true[number]
        if fault == "wrong":
            web = other[(number + int(dice.integers(1, config.pages))) % config.pages]
        elif fault == "nothing":
            web = str(dice.choice(NOTHING)).format(n=dice.integers(10_000))
        pages.append(Page(number, split, web, true[number], fault))
    rest = [
        Page(number, split, true[number], true[number], None)
        for number, split in enumerate(clean, start=len(splits))
    ]
    return pages, rest


def scene_of(number: int, config: WebConfig) -> Scene:
    """What the picture of that number shows."""
    return draw_scene(number, config.seed, WORLDS[: config.worlds])


def things_of(page: Page, config: WebConfig) -> Counter[tuple[str, str]]:
    """Colour and kind of the things in a page's picture."""
    return Counter((thing.colour, thing.kind) for thing in scene_of(page.number, config).things)


def things_in(text: str) -> Counter[tuple[str, str]]:
    """Colour and kind of the things that a caption names."""
    words = text.split()
    kinds = {kind for world in WORLDS for kind in (*world.flying, *world.standing)}
    pairs = ((first.strip(","), second.strip(",")) for first, second in pairwise(words))
    return Counter(pair for pair in pairs if pair[0] in COLOURS and pair[1] in kinds)


def make_web(home: Path, config: WebConfig) -> list[Page]:
    """Paint the pictures and write the datasets, as far as they are not there; the web's pages."""
    web, clean = pages_of(config)
    for family, pages in (("web", web), ("clean", clean)):
        with ProcessPoolExecutor() as painters:

            def rows(part: Sequence[Page], painters: Any = painters) -> pa.Table:
                numbers = [page.number for page in part]
                painted = painters.map(_painted, numbers, [config] * len(part), chunksize=64)
                return pa.Table.from_pylist(list(map(_pair, part, painted)), PAIRS)

            _write(home / family / "pairs", "pairs", pages, rows, config)
    _write(home / "web/truth", "captions", web, _truths, config)
    return web


def _write(
    home: Path,
    kind: str,
    pages: Sequence[Page],
    rows: Callable[[Sequence[Page]], pa.Table],
    config: WebConfig,
) -> None:
    schema = {"pairs": PAIRS, "captions": CANDIDATES}[kind]
    draft = Draft.begin(Folder.at(home), kind, schema, Lineage("procedural-web", asdict(config)))
    if draft.published():
        return
    for number, first in enumerate(range(0, len(pages), SHARD_ROWS)):
        table = rows(pages[first : first + SHARD_ROWS])
        kept = Account.all_kept(len(table))  # a caption a picture
        commit_table(
            draft.folder, number, table, draft.rows_per_batch, pictures=kept, captions=kept
        )
    draft.publish(draft.committed().values())


def _pair(page: Page, picture: bytes) -> dict[str, Any]:
    names = ("width_px", "height_px", "original_width_px", "original_height_px")
    return {
        "uid": page_uid(page),
        "url": _url(page),
        "picture": picture,
        "captions": [{"text": page.web, "source": WEB, "status": KEPT}],
        "split": page.split,
        **dict.fromkeys(names, SIDE_PX),
    }


def _truths(pages: Sequence[Page]) -> pa.Table:
    captions: list[list[ScoredCaption] | None] = [
        [ScoredCaption(text=page.true, source=WEB, status=KEPT, scores=[])] for page in pages
    ]
    return candidate_rows([*map(page_uid, pages)], captions, [page.split for page in pages])


def page_uid(page: Page) -> bytes:
    """The uid of a page's picture."""
    return uid_of_url(_url(page))


def _url(page: Page) -> str:
    return f"http://procedural.invalid/{page.number:06d}.jpg"


def _painted(number: int, config: WebConfig) -> bytes:
    buffer = io.BytesIO()
    paint(scene_of(number, config)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
