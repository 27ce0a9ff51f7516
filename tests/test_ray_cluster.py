"""The cluster file is one that Ray's launcher takes."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config


def test_ray_validates_the_cluster_file():
    path = Path(__file__).parents[1] / "ray_cluster.yaml"
    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu_worker", "gpu_worker"}
    assert types["head"]["resources"]["CPU"] == 0
    assert config["provider"]["region"]
    # Nothing is opened to the world.
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
