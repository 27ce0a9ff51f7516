"""The command as a user runs it: a process of its own, replicas on Ray, stopped by a signal."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.cli import main
from jobs.serve import Serve
from jobs.serve.limits import LimitsConfig
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones

START_S = 300


@contextlib.contextmanager
def served(*arguments: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server of its own, at a free port; its address and process."""
    command = [sys.executable, "-m", "jobs.cli", "serve", *map(str, arguments), "--port", "0"]
    here = Path(__file__).parents[3]
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        cwd=here,
    ) as process:
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            address = process.stdout.readline().strip()
            timer.cancel()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), process.stderr.read()
            yield address.rstrip("/"), process
        finally:
            timer.cancel()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)


@pytest.mark.slow
def test_the_command_serves_what_search_finds_until_it_is_stopped(
    searchable, data, tmp_path, capsys
):
    for name, source in (("index", searchable), ("pairs", data / "pairs")):
        shutil.copytree(source, tmp_path / name)
    options = ("--pairs", tmp_path / "pairs", "--features", data / "features", "--replicas", 2)
    with served(tmp_path / "index", *options) as (address, process):
        with httpx.Client(base_url=address, timeout=60) as client:
            assert client.get("/healthz").is_success
            fields = {"text": "picture number 3", "k": 5}
            told = client.post("/v1/search", json=fields).json()
            again = client.post("/v1/search", json=fields | {"rerank": 20}).json()
            assert [one["rank"] for one in told["results"]] == [1, 2, 3, 4, 5]
            matches = [one["match"] for one in again["results"]]
            assert matches == sorted(matches, reverse=True)

            image = (data / "source" / "images" / "0003.png").read_bytes()
            kind = {"content-type": "image/png"}
            found = client.post("/v1/search?k=1", content=image, headers=kind).json()
            best = found["results"][0]
            assert best["url"] == "images/0003.png"
            captions = client.post(
                "/v1/search", json={"uid": best["uid"], "find": "captions", "k": 3}
            ).json()
            assert [set(one) for one in captions["results"]] == [
                {"rank", "score", "uid", "text"}
            ] * 3
            assert client.get(f"/v1/pairs/{best['uid']}/picture").is_success

            # Taken down: it is gone without a restart, from the page and from both replicas.
            down = told["results"][0]["uid"]
            for home in ("index", "pairs"):
                add_tombstones(Folder.at(tmp_path / home), [bytes.fromhex(down)])
            time.sleep(1.5)
            assert client.get(f"/v1/pairs/{down}").status_code == 404
            for _ in range(8):
                left = client.post("/v1/search", json=fields | {"k": 100}).json()["results"]
                assert len(left) == len(pairs_of(data)) - 1
                assert down not in [one["uid"] for one in left]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.rstrip().endswith("viaduct serve: stopped")
        assert "Traceback" not in err
    capsys.readouterr()
    assert main(["search", str(searchable), "picture number 3", "--k", "5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["searches"][0]["results"]
    for one, other in zip(printed, told["results"], strict=True):  # threads move the last bits
        assert other == one | {"score": pytest.approx(one["score"], abs=1e-5)}


def pairs_of(data: Path) -> list[bytes]:
    pairs = Dataset.open(str(data / "pairs"))
    return [uid for shard in pairs.shards() for uid in shard.table.column("uid").to_pylist()]


def test_what_cannot_be_served_is_one_line_before_anything_starts(
    searchable, unbroken, other, data, tmp_path, refused
):
    assert "no such folder" in refused("serve", tmp_path / "nowhere")
    line = refused("serve", searchable, "--checkpoint", other)
    assert "was made with checkpoint" in line
    assert "token_file" in refused("serve", searchable, "--token-file", tmp_path / "none")
    line = refused("serve", searchable, "--host", "203.0.113.7")
    assert "host, port: 203.0.113.7, 8000: cannot be had: " in line
    assert "'pairs' is needed" in refused("serve", searchable, "--pairs", data / "features")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Serve(index="i", port=70_000), "port: 70000 is no port"),
        (lambda: Serve(index="i", replicas=0), "replicas: 0 is not positive"),
        (lambda: Serve(index="i", gpus_per_replica=-1.0), "gpus_per_replica: -1.0 is negative"),
        (lambda: LimitsConfig(max_k=0), "max_k: 0 is not positive"),
        (lambda: LimitsConfig(search_timeout_s=-1.0), "search_timeout_s: -1.0 is not positive"),
        (lambda: LimitsConfig(max_k=200), "max_rerank: 128 is less than max_k=200"),
    ],
)
def test_what_makes_no_sense_is_named(made, said):
    with pytest.raises(ConfigError, match=said):
        made()
