"""A cluster whose nodes come and go: commands are submitted, followed and stopped.

It is that of ray_cluster.yaml, on one machine: the same node types with less in them, started by
Ray's autoscaler through its provider of nodes that are processes. GPUs are declared, not there.
"""

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ray._private.services import get_node_ip_address
from ray._raylet import GcsClient
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus
from ray.exceptions import RpcError

from jobs.cli import main
from pipeline.dataset import Dataset

pytestmark = pytest.mark.slow

CLUSTER_FILE = Path(__file__).parents[2] / "ray_cluster.yaml"
BIN = Path(sys.executable).parent
COMMAND_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
"""Empty, for a node is a process here."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
SMALL = {"CPU": 1, "GPU": 1, "nodes": 2}
"""Most of each that a node is given here, and most nodes of a type."""


class LocalCluster:
    """A head and the nodes that its autoscaler brings up."""

    def __init__(self, gcs: str, dashboard: str) -> None:
        self.gcs, self.dashboard = gcs, dashboard
        self.seen: set[str] = set()
        """Types of the nodes that were up since it was emptied."""
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def close(self) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        client = GcsClient(address=self.gcs)
        while not self._over.wait(0.3):
            with contextlib.suppress(RpcError):  # a head that is busy
                self.seen |= set(self.types(client))

    def types(self, client: GcsClient | None = None) -> list[str]:
        """Types of the nodes that are up, sorted, without the head."""
        client = client or GcsClient(address=self.gcs)
        reply = GetClusterStatusReply.FromString(client.get_cluster_status())
        nodes = reply.cluster_resource_state.node_states
        types = (node.ray_node_type_name for node in nodes if node.status != NodeStatus.DEAD)
        return sorted(its for its in types if its not in ("", "ray.head.default"))

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command beside the head that has its work done here."""
        command = [sys.executable, "-m", "jobs.cli", *map(str, words), "--address", self.gcs]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)

    def viaduct(self, *words: object) -> int:
        """Call a command about its runs; the exit code."""
        command, *others = map(str, words)
        count = 2 if others and others[0] in ("follow", "stop") else 1
        parts = [command, *others]
        return main([*parts[:count], "--address", self.dashboard, *parts[count:]])


def node_types() -> dict[str, dict]:
    """Those of the cluster file, small, under the name that the provider knows the head by."""
    types = yaml.safe_load(CLUSTER_FILE.read_text())["available_node_types"]
    for its in types.values():
        its["resources"] = {
            kind: min(amount, SMALL[kind]) for kind, amount in its["resources"].items()
        }
        its["resources"]["object_store_memory"] = 80 << 20
        its["max_workers"] = min(SMALL["nodes"], its.get("max_workers", 0))
        its["node_config"] = {}
    types["ray.head.default"] = types.pop("head") | {"max_workers": 0}
    return types


@pytest.fixture(scope="module")
def cluster(ray_token, free_ports) -> Iterator[LocalCluster]:
    gcs, dashboard, agent, client = free_ports(4)
    home = Path(tempfile.mkdtemp(prefix="viaduct-"))
    address = f"{get_node_ip_address()}:{gcs}"
    provider = {
        **{"type": "external", "module": PROVIDER, "launch_multiple": True},
        **{"disable_node_updaters": True, "disable_launch_config_check": True},
        **{"gcs_address": address, "head_node_id": FAKE_HEAD_NODE_ID},
    }
    config = {
        "cluster_name": "test",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": node_types(),
        "head_node_type": "ray.head.default",
        **{name: [] for name in COMMAND_LISTS},
        "file_mounts": {},
    }
    (home / "cluster.json").write_text(json.dumps(config))
    command = [
        *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=0"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}"),
        *("--object-store-memory=100000000", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--temp-dir={home}", f"--autoscaling-config={home}/cluster.json"),
    ]
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` sets it
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with (home / "log.txt").open("wb") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: head.poll() is not None or answers(dashboard), 240)
        assert head.poll() is None, (home / "log.txt").read_text()
        with contextlib.closing(LocalCluster(address, f"http://127.0.0.1:{dashboard}")) as made:
            yield made
    finally:
        head.terminate()  # --block ends what it started
        head.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


def answers(port: int) -> bool:
    try:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        client.request("GET", "/api/version")
        return client.getresponse().status == 401  # without the token
    except OSError:
        return False


def wait_until(true: Callable[[], bool], longest_s: float) -> None:
    deadline = time.monotonic() + longest_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def source(tmp_path_factory, draw_folder) -> Path:
    return draw_folder(tmp_path_factory.mktemp("cluster") / "source", 40)


def test_nodes_come_for_the_work_and_go_when_idle(cluster, source, capfd):
    """Ingest has CPU workers, features have a GPU worker, and in the end there is the head."""
    home = source.parent
    wait_until(lambda: not cluster.types(), 60)
    cluster.seen.clear()
    ingest = ("ingest", source, "--out", home / "raw", "--shard-rows", "4")
    assert cluster.viaduct("submit", "--follow", "--name", "first", "--", *ingest) == 0
    assert cluster.seen == {"cpu_worker"}
    out, err = capfd.readouterr()
    assert "progress job=fetch pictures=40/40" in out
    assert f"{home}/raw: " in out
    assert "first: succeeded after 0:0" in err
    assert Dataset.open(home / "raw").num_rows == 40
    run = json.loads((home / "raw/run.json").read_text())["runs"][0]
    assert "_ray_pkg" in run["command"][0]  # the code that was sent

    curate = ("curate", f"{home}/raw", "--out", f"{home}/pairs", "--shard-rows", "8", "--cpus", "1")
    subprocess.run([sys.executable, "-m", "jobs.cli", *curate], check=True, timeout=200)
    wait_until(lambda: not cluster.types(), 90)
    encoder = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random")
    features = ("features", home / "pairs", "--out", home / "features", *encoder)
    # What computes is the CPU; what is reserved is a GPU.
    cluster.seen.clear()
    reserve = ("--device", "cpu", "--gpus-per-worker", 1, "--cpus-per-worker", 0)
    computed = cluster.run(*features, *reserve)
    assert computed.returncode == 0, computed.stderr
    assert cluster.seen == {"gpu_worker"}
    assert Dataset.open(home / "features").num_rows == Dataset.open(home / "pairs").num_rows
    wait_until(lambda: not cluster.types(), 90)


def test_a_command_that_ends_in_error_ends_the_follower_alike(cluster, tmp_path, capfd):
    nowhere = ("inspect", tmp_path / "nowhere")
    here = ("--no-ship", "--driver-cpus", "0")
    assert cluster.viaduct("submit", "--follow", "--name", "bad", *here, "--", *nowhere) == 2
    out, err = capfd.readouterr()
    assert f"viaduct inspect: {tmp_path}/nowhere: no such folder" in out
    assert "bad: failed after" in err
    assert cluster.viaduct("runs", "follow", "bad") == 2
    assert cluster.viaduct("runs", "follow", "worse") == 2
    assert "no run 'worse' on this cluster" in capfd.readouterr().err
    assert cluster.viaduct("submit", "--name", "bad", "--", *nowhere) == 2
    assert "there is a run 'bad' already" in capfd.readouterr().err
    assert cluster.viaduct("runs", "stop", "bad") == 2
    assert "the run 'bad' has ended already: failed" in capfd.readouterr().err


@pytest.fixture
def slow_web(source):
    """Serves the pictures of the source, each after a second until it is told to hurry."""
    hurry = threading.Event()

    class Slow(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            hurry.wait(1)
            super().do_GET()

    def handler(*arguments: object) -> Slow:
        return Slow(*arguments, directory=str(source))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", hurry
    server.shutdown()
    server.server_close()


def test_a_run_outlives_its_follower_stops_cleanly_and_goes_on(
    cluster, source, slow_web, tmp_path, capfd
):
    address, hurry = slow_web
    rows = map(json.loads, (source / "pairs.jsonl").read_text().splitlines())
    urls = [json.dumps({"url": f"{address}/{row['file']}", "caption": "a"}) for row in rows][:16]
    (tmp_path / "urls.jsonl").write_text("\n".join(urls))
    ingest = [
        *("ingest", f"{tmp_path}/urls.jsonl", "--out", f"{tmp_path}/raw", "--shard-rows", "2"),
        *("--allow-host", "127.0.0.1", "--per-host", "1", "--workers", "1"),
    ]
    submit = [sys.executable, "-m", "jobs.cli", "submit", "--address", cluster.dashboard]
    log = (tmp_path / "log.txt").open("w+")
    follower = subprocess.Popen(
        [*submit, "--follow", "--name", "slow", "--", *ingest], stdout=log, stderr=log
    )
    wait_until((tmp_path / "raw/00001.json").exists, 90)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(timeout=30) == 130
    said = (tmp_path / "log.txt").read_text()
    assert (
        f"slow: goes on; `viaduct runs follow slow --address {cluster.dashboard}` follows" in said
    )

    assert cluster.viaduct("runs", "--json") == 0
    listed = {run["name"]: run for run in json.loads(capfd.readouterr().out)}
    assert listed["slow"]["status"] == "running"
    assert listed["slow"]["command"] == ingest
    assert listed["slow"]["exit_code"] is None

    assert cluster.viaduct("runs", "stop", "slow") == 0
    assert (
        f"slow: stopped; to go on: `viaduct submit -- ingest {tmp_path}" in capfd.readouterr().out
    )
    assert cluster.viaduct("runs", "follow", "slow") == 130
    out, err = capfd.readouterr()
    assert "viaduct ingest: stopped; the same command goes on from here" in out
    assert "slow: stopped after 0:0" in err
    assert not (tmp_path / "raw/dataset.json").exists()
    assert not list((tmp_path / "raw").rglob(".tmp-*"))

    hurry.set()
    assert cluster.viaduct("submit", "--follow", "--name", "again", "--", *ingest) == 0
    assert Dataset.open(tmp_path / "raw").num_rows == 16
    phase = json.loads((tmp_path / "raw/run.json").read_text())["runs"][-1]["phases"][-1]
    assert phase["shards_found"] >= 2
    capfd.readouterr()
    assert cluster.viaduct("runs") == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert rows[0] == ["name", "status", "since", "duration", "command"]
    assert [row[:2] for row in rows if row[0] in ("slow", "again")] == [
        ["slow", "stopped"],
        ["again", "succeeded"],
    ]


def test_a_job_that_asks_for_what_no_node_has_says_so_and_ends(cluster, source, tmp_path):
    ended = cluster.run("ingest", source, "--out", tmp_path / "raw", "--gpus-per-worker", 4)
    assert ended.returncode == 2
    assert "waits for 1 x 4 GPU: the autoscaler is asked" in ended.stderr
    assert "and the autoscaler has no node to add" in ended.stderr
