"""What Prometheus scrapes while jobs run, and the dashboard that shows it."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
LABELS = ("dataset", "phase", "outcome", "run", "split", "metric")
NAMES = {
    *("ray_viaduct_shards_total", "ray_viaduct_shards_left", "ray_viaduct_pictures_total"),
    *("ray_viaduct_bytes_total", "ray_viaduct_training", "ray_viaduct_training_step"),
}

JOB = """
import json, sys, time, urllib.request
import ray
from jobs.cli import main
from jobs.prometheus import TrainingMetrics

source, out, port, *names = sys.argv[1:]
ray.init(address="local", num_cpus=2, _metrics_export_port=int(port), include_dashboard=False,
         _system_config={"metrics_report_interval_ms": 500}, log_to_driver=False)
assert main(["ingest", source, "--out", f"{out}/raw", "--shard-rows", "8"]) == 0
board = TrainingMetrics("stage1")
board.numbers(25, "train", {"loss": 2.5, "step_s": 0.5})
until, text = time.monotonic() + 60, ""
while time.monotonic() < until and not all(f"\\n{name}{{" in text for name in names):
    time.sleep(0.5)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
print(text)
"""


def scraped(text: str) -> dict[tuple[str, ...], float]:
    """Value by name and our labels."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"(ray_viaduct\w*)\{(.*)\} (\S+)$", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            mine = (labels[label] for label in LABELS if label in labels)
            found[match[1], *mine] = float(match[3])
    return found


@pytest.mark.slow
def test_what_a_job_made_can_be_scraped(tmp_path, make_folder):
    source = make_folder(20)
    (source / "images" / "0003.png").write_bytes(b"no picture")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-c", JOB, source, tmp_path, port, *NAMES]
    done = subprocess.run(map(str, words), check=True, capture_output=True, text=True)
    found = scraped(done.stdout)
    assert found["ray_viaduct_shards_total", "raw", "fetch", "made"] == 3
    assert found["ray_viaduct_shards_left", "raw", "fetch"] == 0
    assert found["ray_viaduct_pictures_total", "raw", "fetch", "kept"] == 19
    assert found["ray_viaduct_pictures_total", "raw", "fetch", "failed:not_a_picture"] == 1
    records = [json.loads(path.read_text()) for path in (tmp_path / "raw").glob("0000?.json")]
    written = sum(record["bytes"] for record in records)
    assert found["ray_viaduct_bytes_total", "raw", "fetch"] == written
    assert found["ray_viaduct_training", "stage1", "train", "loss"] == 2.5
    assert found["ray_viaduct_training_step", "stage1", "train"] == 25


def test_the_dashboard_asks_for_what_there_is():
    dashboard = json.loads(DASHBOARD.read_text())
    asked = "".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked += "".join(str(its["query"]) for its in dashboard["templating"]["list"])
    names = set(re.findall(r"ray_\w+", asked))
    assert names == NAMES - {"ray_viaduct_training_step"}
    labels = set(re.findall(r'(\w+)=~?"', asked))
    assert labels <= set(LABELS)
