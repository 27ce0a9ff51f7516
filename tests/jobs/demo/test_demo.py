"""A small demo, end to end, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

VIADUCT = Path(sys.executable).with_name("viaduct")


@pytest.mark.slow
def test_a_small_demo_runs_every_command_and_finds_every_planted_fault(tmp_path):
    steps = ["--stage1-steps", "10", "--stage2-steps", "10"]
    ended = subprocess.run(
        [VIADUCT, "demo", "--out", "run", "--pages", "300", *steps],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    home = tmp_path / "run"
    planted = json.loads((home / "planted.json").read_text())
    seen = {fault: counts for fault, counts in planted.items() if counts["as"] is not None}
    assert seen.keys() == {"missing", "html", "truncated", "duplicate", "says_nothing"}
    assert all(counts["found"] == counts["planted"] > 0 for counts in seen.values())
    commands = [line["step"] for line in json.loads((home / "timings.json").read_text())]
    assert commands == [
        *("ingest", "curate", "features", "train-stage1", "train-stage2", "embed", "evaluate"),
        *("index", "inspect", "search", "caption", "caption", "report"),
    ]
    evaluation = json.loads((home / "evaluation.json").read_text())
    assert evaluation["recall"].keys() == {"q_former", "ridge", "chance"}
    for stage in (1, 2):
        captions = json.loads((home / f"captions-stage{stage}.json").read_text())
        assert len(captions["captions"]) == 12
    searches = json.loads((home / "searches" / "results.json").read_text())["searches"]
    assert all(len(search["results"]) == 5 for search in searches)
    assert "data:image" in (home / "report.html").read_text()
