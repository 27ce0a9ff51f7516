"""Ray's launcher takes the cluster file, and docs/cluster.md holds commands that run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.cli import parse, split_command
from jobs.submitted_command import submitted_command

HOME = Path(__file__).parents[1]
DOCS = (HOME / "docs" / "cluster.md").read_text()


@pytest.fixture(scope="module")
def cluster_file() -> dict:
    return prepare_config(yaml.safe_load((HOME / "ray_cluster.yaml").read_text()))


def test_ray_validates_the_cluster_file(cluster_file):
    validate_config(cluster_file)
    types = cluster_file["available_node_types"]
    assert set(types) == {"head", "cpu_worker", "gpu_worker"}
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu_worker"]["resources"] == {"CPU": 0, "GPU": 1}
    assert all(its.get("min_workers", 0) == 0 for its in types.values())
    assert cluster_file["provider"]["region"]


def test_the_cluster_file_opens_nothing_to_the_world(cluster_file):
    for its in cluster_file["available_node_types"].values():
        assert its["node_config"]["SecurityGroupIds"]  # Ray's own opens port 22
        assert its["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    head, worker = (cluster_file[f"{name}_start_ray_commands"][1] for name in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker


def test_five_lines_are_to_be_changed():
    lines = (HOME / "ray_cluster.yaml").read_text().splitlines()
    assert sum("CHANGE:" in line for line in lines) == 5


def test_each_command_of_the_page_is_one():
    lines = re.sub(r" *\\\n +", " ", DOCS).splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("    viaduct ")]
    submitted = [each[each.index("--") + 1 :] for each in words if each[1] == "submit"]
    assert [submitted_command(each).name for each in submitted] == [
        *("ingest", "ingest", "curate", "features", "train-stage1")
    ]
    for each in words:
        if each[1] in ("submit", "runs"):
            parse(*split_command(each[1:]))


def test_the_kubernetes_job_matches_the_cluster_file(cluster_file):
    block = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert block is not None
    spec = yaml.safe_load(block[1])["spec"]
    entrypoint = shlex.split(spec["entrypoint"])
    assert submitted_command(entrypoint).name == "ingest"
    cluster = spec["rayClusterSpec"]
    pinned = re.search(r"^ray==(.*)$", (HOME / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    types = cluster_file["available_node_types"]
    for group in groups:
        its = types[group["groupName"].replace("-", "_")]
        assert (group["minReplicas"], group["maxReplicas"]) == (0, its["max_workers"])
    assert groups[1]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "1"}
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in (head, *groups)}
    assert len(images) == 1
