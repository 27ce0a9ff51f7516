"""Both demos, and a small one end to end, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import parse
from jobs.demo import FULL, QUICK, Demo, _Shell
from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset

VIADUCT = Path(sys.executable).with_name("viaduct")

THEN = ["train-stage2", "embed", "evaluate", "index", "inspect", "search", "caption", "caption"]
COMMANDS = {
    "quick": ["curate", "features", "train-stage1", "capfilt", "select-captions", *THEN],
    "full": [
        *("curate", "features", "curate", "features"),
        *("train-stage1", "train-stage1", "train-stage1", "capfilt", "select-captions"),
        *("train-stage1", *THEN),
    ],
}
"""Of each demo, after what it ingested."""


@pytest.mark.parametrize(("demo", "scale"), [("quick", QUICK), ("full", FULL)])
def test_all_commands_are_as_a_user_may_type_them(tmp_path, monkeypatch, demo, scale):
    """Recipes and all; nothing is run."""
    monkeypatch.chdir(tmp_path)
    Path("look").mkdir()
    Path("look/0.jpg").touch()
    told = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        told.append((words[1], parse(words[1], words[2:])))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("jobs.demo.subprocess.run", run)
    Demo()._from_raw(_Shell(tmp_path, "127.0.0.1:6379"), scale)
    assert [command for command, _ in told] == COMMANDS[demo]
    (capfilt,) = (job for command, job in told if command == "capfilt")
    assert capfilt.judge == (() if demo == "quick" else ("judge",))  # or the captioner itself


@pytest.mark.slow
def test_a_small_full_demo_runs_every_command_and_finds_every_planted_fault(tmp_path):
    steps = ["--stage1-steps", "10", "--stage2-steps", "10"]
    ended = subprocess.run(
        [VIADUCT, "demo", "--out", "run", "--pages", "300", *steps, "--full"],
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
    assert commands == ["ingest", "ingest", *COMMANDS["full"], "report"]
    evaluation = json.loads((home / "evaluation.json").read_text())
    assert evaluation["recall"].keys() == {"q_former", "reranked", "ridge", "chance"}
    for stage in (1, 2):
        captions = json.loads((home / f"captions-stage{stage}.json").read_text())
        assert len(captions["captions"]) == len(list((home / "look").glob("*.jpg"))) >= 12
    searches = json.loads((home / "searches" / "results.json").read_text())["searches"]
    assert all(len(search["results"]) == 5 for search in searches)
    assert "data:image" in (home / "report.html").read_text()
    trained_on = Dataset.open(str(home / "captions"))
    for stage in ("stage1", "stage2"):
        assert trained_on.as_parent in Checkpoint.open(str(home / stage)).lineage.parents
    models = Dataset.open(str(home / "candidates")).manifest.lineage.frozen
    captioner, judge = models["captioner"]["digest"], models["judges"][0]["digest"]
    assert captioner != judge
