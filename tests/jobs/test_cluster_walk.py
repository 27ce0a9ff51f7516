"""docs/cluster.md on one machine: a head and two workers by `ray start`, datasets on an S3.

The procedural web goes through all steps by `viaduct submit`, in the smallest sizes that there are.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._raylet import GcsClient
from ray.exceptions import RpcError

from jobs.cli import main
from jobs.demo.web import make_pages, num_planted, served, write_urls
from pipeline.dataset import Dataset

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
NUM_PAGES = 160
SIZE = (
    *("--num-layers", 2, "--width", 32, "--num-heads", 2, "--vocab-size", 500),
    *("--num-queries", 4, "--embed-dim", 16, "--dropout", 0),
)
SHORT = (
    *("--steps", 8, "--batch-size", 8, "--warmup-steps", 2, "--learning-rate", 2e-3),
    *("--log-every", 4, "--validate-every", 8, "--checkpoint-every", 8, "--device", "cpu"),
)


@pytest.fixture(scope="module")
def dashboard(ray_token, free_ports) -> Iterator[str]:
    """That of a cluster of a head, which is given no work, and two workers of a core each."""
    home = Path(tempfile.mkdtemp(prefix="viaduct-"))
    gcs, port, client = free_ports(3)
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    start = (BIN / "ray", "start", "--block", "--disable-usage-stats", "--min-worker-port=0")
    start = (*start, "--max-worker-port=0", "--object-store-memory=100000000")
    head = ("--head", "--num-cpus=0", f"--port={gcs}", "--dashboard-host=127.0.0.1")
    head = (*head, f"--dashboard-port={port}", f"--ray-client-server-port={client}")
    worker = (f"--address=127.0.0.1:{gcs}", "--num-cpus=1")
    nodes: list[subprocess.Popen[bytes]] = []

    def begin(*options: str) -> None:
        """A node; one after the other, for Ray gives each half a minute, however busy it is."""
        file = home / f"{len(nodes)}.txt"
        words = [*start, f"--dashboard-agent-listen-port={free_ports(1)[0]}", *options]
        with file.open("wb") as log:
            nodes.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        deadline = time.monotonic() + 120
        while num_nodes(f"127.0.0.1:{gcs}") < len(nodes):
            assert nodes[-1].poll() is None, file.read_text()
            assert time.monotonic() < deadline, file.read_text()
            time.sleep(0.2)

    try:
        begin(*head, f"--temp-dir={home}")
        begin(*worker)
        begin(*worker)
        yield f"http://127.0.0.1:{port}"
    finally:
        for node in nodes:
            below: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended at once
                below = psutil.Process(node.pid).children(recursive=True)
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            node.kill()
            node.wait()
        shutil.rmtree(home, ignore_errors=True)


def num_nodes(gcs: str) -> int:
    """Nodes that the cluster knows; none while its head starts."""
    with contextlib.suppress(RpcError):
        return len(GcsClient(address=gcs).get_all_node_info())
    return 0


def test_the_procedural_web_goes_through_all_steps_by_submit(
    dashboard, bucket, language_folder, tmp_path, capfd
):
    fs, place = bucket

    def at(name: str) -> str:
        return re.sub("//.*@", "//", place(f"walk/{name}"))  # the nodes' environment has the key

    def submit(name: str, *command: object) -> str:
        """Run a command on the cluster; what it said."""
        capfd.readouterr()
        words = ["submit", "--address", dashboard, "--follow", "--name", name, "--", *command]
        ended = main([str(word) for word in words])
        said = capfd.readouterr().out
        assert ended == 0, said
        return said

    pages = make_pages(NUM_PAGES, 0)
    with served(pages) as address:
        write_urls(pages, address, tmp_path / "urls.jsonl")
        with fs.open_output_stream("bucket/walk/urls.jsonl") as file:
            file.write((tmp_path / "urls.jsonl").read_bytes())
        here = ("--allow-host", "127.0.0.1", "--per-host", 32, "--shard-rows", 40)
        submit("ingest", "ingest", at("urls.jsonl"), "--out", at("raw"), *here)
    shares = ("--test-share", 0.2, "--validation-share", 0.1)
    submit("curate", "curate", at("raw"), "--out", at("pairs"), *shares)
    encoder = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random", "--device", "cpu")
    submit("features", "features", at("pairs"), "--out", at("features"), *encoder)
    web = ("--features", at("features"), "--captions", at("pairs"))
    start = ("--start", "scratch", *SIZE, *SHORT, "--ranks", 2)
    submit("stage1", "train-stage1", *web, "--out", at("stage1"), *start)
    seen = ("--features", at("features"), "--pairs", at("pairs"))
    writing = ("--captioner", at("stage1"), "--num-captions", 2, "--max-tokens", 12)
    submit("capfilt", "capfilt", *seen, *writing, "--out", at("candidates"))
    submit("select", "select-captions", at("candidates"), "--out", at("captions"))
    chosen = ("--features", at("features"), "--captions", at("captions"))
    model = (f"hf:{language_folder}", "--max-language-tokens", 24)
    stage2 = ("--checkpoint", at("stage1"), "--language-model", *model, *SHORT)
    submit("stage2", "train-stage2", *chosen, "--out", at("stage2"), *stage2)
    made = ("--checkpoint", at("stage1"), *web)
    submit("embed", "embed", *made, "--out", at("embeddings"))
    measured = ("--out", at("evaluation.json"), "--rerank", 4)
    submit("evaluate", "evaluate", at("embeddings"), *made, *measured)
    indexed = ("--pairs", at("pairs"), "--checkpoint", at("stage1"), "--out", at("index"))
    submit("index", "index", at("embeddings"), *indexed)
    found = submit("search", "search", at("index"), "a red house", "--k", 3)
    assert "a red house" in found

    raw, pairs = (Dataset.open(place(f"walk/{name}")) for name in ("raw", "pairs"))
    dropped = sum(raw.manifest.pictures.dropped.values())
    assert raw.num_rows + dropped == NUM_PAGES
    assert dropped == sum(num_planted(pages)[fault] for fault in ("missing", "html", "truncated"))
    assert 0 < pairs.num_rows < raw.num_rows
    with fs.open_input_stream("bucket/walk/evaluation.json") as file:
        assert json.loads(file.read())["recall"].keys() >= {"q_former", "reranked"}
    assert main(["runs", "--address", dashboard, "--json"]) == 0
    runs = json.loads(capfd.readouterr().out)
    assert {run["status"] for run in runs} == {"succeeded"}
    assert len(runs) == 11
