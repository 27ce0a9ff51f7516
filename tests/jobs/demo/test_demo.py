"""A small demo, end to end, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset

VIADUCT = Path(sys.executable).with_name("viaduct")

BEFORE = {
    False: ["ingest", "curate", "features", "train-stage1", "capfilt", "select-captions"],
    True: [
        *("ingest", "ingest", "curate", "features", "curate", "features"),
        *("train-stage1", "train-stage1", "train-stage1", "capfilt", "select-captions"),
        "train-stage1",
    ],
}
"""Commands up to stage 1, of the quick demo and of the full one."""


@pytest.mark.slow
@pytest.mark.parametrize("full", BEFORE)
def test_a_small_demo_runs_every_command_and_finds_every_planted_fault(tmp_path, full):
    steps = ["--stage1-steps", "10", "--stage2-steps", "10"]
    ended = subprocess.run(
        [VIADUCT, "demo", "--out", "run", "--pages", "300", *steps, *["--full"] * full],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    home = tmp_path / "run"
    planted = json.loads((home / "planted.json").read_text())
    wrong = planted.pop("wrong_caption")
    assert 0 < wrong["judged"] <= wrong["planted"]
    assert f"not kept, of {wrong['judged']} that were judged" in ended.stdout
    assert planted.keys() == {"missing", "html", "truncated", "duplicate", "says_nothing"}
    assert all(counts["found"] == counts["planted"] > 0 for counts in planted.values())
    commands = [line["step"] for line in json.loads((home / "timings.json").read_text())]
    assert commands == [
        *BEFORE[full],
        *("train-stage2", "embed", "evaluate", "index", "inspect", "search", "caption", "caption"),
        "report",
    ]
    evaluation = json.loads((home / "evaluation.json").read_text())
    assert evaluation["recall"].keys() == {"q_former", "reranked", "ridge", "chance"}
    for stage in (1, 2):
        captions = json.loads((home / f"captions-stage{stage}.json").read_text())
        assert len(captions["captions"]) == len(list((home / "look").glob("*.jpg"))) >= 12
    searches = json.loads((home / "searches" / "results.json").read_text())["searches"]
    assert all(len(search["results"]) == 5 for search in searches)
    assert "data:image" in (home / "report.html").read_text()
    trained_on = Dataset.open(str(home / ("captions" if full else "pairs")))
    for stage in ("stage1", "stage2"):
        assert trained_on.as_parent in Checkpoint.open(str(home / stage)).lineage.parents
    models = Dataset.open(str(home / "candidates")).manifest.lineage.frozen
    captioner, judge = models["captioner"]["digest"], models["judges"][0]["digest"]
    assert (captioner == judge) == (not full)
    assert ("forgives what it wrote itself" in (home / "report.html").read_text()) == (not full)
