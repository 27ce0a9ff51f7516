"""What became of planted faults is counted right, also of those that only a judge can see."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.demo.faults import planted_faults, verdict
from jobs.demo.scenes import draw_scene
from jobs.demo.web import Page
from pipeline.accounting import Account
from pipeline.candidates import candidate_rows, caption_account
from pipeline.draft import Draft
from pipeline.errors import ViaductError
from pipeline.lineage import Lineage
from pipeline.schemas import UID
from pipeline.shard import commit_table
from pipeline.storage import Folder

NOT_BEST, BELOW = "rejected:not_best", "rejected:below_threshold"
SCENES = [draw_scene(number, 0) for number in range(6)]
PAGES = [
    Page("/0.png", ("a red boat",), None, SCENES[0]),
    Page("/1.png", ("a green star", "a green star at sea"), "wrong_caption", SCENES[1]),
    Page("/2.png", ("a white cup",), "wrong_caption", SCENES[2]),
    Page("/3.png", ("a blue car",), "duplicate", SCENES[2]),
    Page("/4.png", ("photo",), "says_nothing", SCENES[3]),
    Page("/5.png", ("a tree",), None, SCENES[4]),
    Page("/6.png", ("a house",), "wrong_caption", SCENES[5]),
    Page("/7.png", (), "missing", SCENES[0]),
]
CHOSEN = [
    [("a red boat", "web", "kept"), ("a red ship", "synthetic", NOT_BEST)],
    [("a green star", "web", BELOW), ("a green star at sea", "web", NOT_BEST)],
    [("a white cup", "web", "kept"), ("a blue car", "web", BELOW)],  # with what the duplicate says
    [("photo", "web", "rejected:says_nothing"), ("a kite", "synthetic", "kept")],
    [("a tree", "web", NOT_BEST), ("a big tree", "synthetic", "kept")],
    [("a house", "web", "kept")],  # held out, not judged
]
URLS = [f"http://127.0.0.1:80/{name}.png" for name in (0, 1, 3, 4, 5, 6)]
"""Of the wrong one and its duplicate the latter's stayed."""


def scored(text: str, source: str, status: str) -> dict:
    scores = [] if text == "a house" else [{"judge": "clip:a", "itc": 0.5, "itm": None}]
    return {"text": text, "source": source, "status": status, "scores": scores}


def make(
    home: Path, kind: str, table: pa.Table, captions: Account | None = None, **dropped: int
) -> None:
    draft = Draft.begin(Folder.at(home / kind), kind, table.schema, Lineage("test", {}))
    pictures = Account.all_kept(table.num_rows)
    record = commit_table(draft.folder, 0, table, 64, pictures=pictures, captions=captions)
    draft.publish([record], pictures=[Account.all_dropped(dropped)])


@pytest.fixture
def home(tmp_path) -> Path:
    """Datasets as ingest, curate and a selection would leave them of these pages."""
    uids = [bytes([number]) * 16 for number in range(len(CHOSEN))]
    make(tmp_path, "raw", pa.table({"uid": pa.array(uids, UID)}), **{"failed:http_404": 1})
    rest = [("url", pa.string()), ("captions", pa.list_(pa.string()))]
    columns = {"uid": uids, "url": URLS, "captions": [None] * len(uids)}
    table = pa.table(columns, schema=pa.schema([("uid", UID), *rest]))
    make(tmp_path, "pairs", table, Account(8, 7, {"rejected:says_nothing": 1}), duplicate=1)
    captions = [[scored(*caption) for caption in its] for its in CHOSEN]
    table = candidate_rows(uids, captions, ["train"] * 5 + ["test"])
    make(tmp_path, "captions", table, caption_account(table))
    return tmp_path


def test_each_fault_has_what_was_found_of_it(home):
    planted = planted_faults(PAGES, home)
    assert json.loads((home / "planted.json").read_text()) == planted
    assert planted == {
        "duplicate": {"planted": 1, "found": 1, "as": "duplicate"},
        "missing": {"planted": 1, "found": 1, "as": "failed:http_404"},
        "says_nothing": {"planted": 1, "found": 1, "as": "rejected"},
        "wrong_caption": {
            # The first wrong one lost all it said, the second kept it, the third was not judged.
            **{"planted": 3, "found": 1, "as": None, "judged": 2},
            # A boat that stayed, a car and a tree that did not.
            **{"true": 3, "true_left_out": 2},
        },
    }
    lines = list(verdict(planted))
    assert lines[1] == "duplicate             1         1 as duplicate"
    assert lines[-1] == (
        "wrong_caption         3         1 not kept, of 2 that were judged (of true ones 2 of 3)"
    )


def test_a_fault_that_was_missed_is_an_error(home):
    planted = planted_faults([*PAGES, PAGES[-1]], home)
    with pytest.raises(ViaductError, match="2 missing planted, 1 found as failed:http_404"):
        list(verdict(planted))
