"""How many workers a cluster is asked for, and what is said while none comes."""

import logging

import pytest
from ray.core.generated.autoscaler_pb2 import AutoscalingState

from jobs import capacity
from jobs.capacity import Size, Wait, await_room, bundle, num_held
from jobs.cluster import cluster_device
from pipeline.errors import ConfigError

HEAD = {"CPU": 0.0}
CPU_NODE = {"CPU": 16.0, "memory": 3e10}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def cluster(monkeypatch):
    """A cluster's nodes, as a list to change, that can grow unless told otherwise."""
    nodes = [HEAD]
    monkeypatch.setattr(capacity, "_nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "can_grow", lambda: True)
    monkeypatch.setattr(capacity, "_LOOK_EVERY_S", 0)
    monkeypatch.setattr(capacity, "_autoscaling_state", AutoscalingState)
    return nodes


@pytest.fixture
def autoscaler(monkeypatch):
    """What the autoscaler told last."""
    state = AutoscalingState(autoscaler_state_version=1)
    monkeypatch.setattr(capacity, "_autoscaling_state", lambda: state)
    return state


def sizes(size: Size) -> tuple[int, int]:
    size.look()
    return size.held, size.wanted


def test_a_worker_fits_on_a_node_or_not_at_all(cluster):
    cluster += [CPU_NODE, GPU_NODE]
    assert num_held(bundle(1, 0)) == 16 + 8
    assert num_held(bundle(12, 0)) == 1
    assert num_held(bundle(20, 0)) == 0
    assert num_held(bundle(1, 0.25)) == 4
    assert num_held(bundle(0.1, 0)) == 160 + 80
    assert num_held(bundle(9, 1)) == 0
    assert num_held(bundle(1, 0, memory_gb=4)) == 7
    assert num_held(bundle(1, 0, memory_gb=40)) == 0


def test_a_cluster_that_grows_is_asked_for_one_and_then_for_as_many_as_came(cluster):
    size = Size(bundle(1, 0), None)
    assert sizes(size) == (0, 1)
    cluster.append(CPU_NODE)
    assert sizes(size) == (16, 32)
    cluster.append(CPU_NODE)
    assert sizes(size) == (32, 64)
    cluster += [CPU_NODE] * 30
    assert sizes(size) == (512, 512 + 256)
    del cluster[1:]
    assert sizes(size) == (0, 1)


def test_a_cluster_that_has_all_its_nodes_is_asked_for_one_more_only(cluster):
    cluster += [CPU_NODE, CPU_NODE]
    assert sizes(Size(bundle(1, 0), None)) == (32, 33)


def test_a_cluster_that_refuses_is_left_alone_for_a_while(cluster, autoscaler, monkeypatch):
    cluster += [CPU_NODE]
    size = Size(bundle(1, 0), None)
    refuse(autoscaler, CPU=1)
    assert sizes(size) == (16, 16)
    del autoscaler.infeasible_resource_requests[:]
    assert sizes(size) == (16, 16)
    monkeypatch.setattr(capacity.time, "monotonic", lambda: size._ask_from)
    assert sizes(size) == (16, 17)
    refuse(autoscaler, CPU=1)
    del cluster[1:]
    assert sizes(size) == (0, 1)  # without which nothing is done


def test_a_given_number_is_asked_for_at_once(cluster):
    size = Size(bundle(1, 0), 40)
    assert sizes(size) == (0, 40)
    cluster += [CPU_NODE, CPU_NODE, CPU_NODE]
    assert sizes(size) == (40, 40)


def test_the_fewest_are_asked_for_at_once_and_more_as_they_come(cluster, autoscaler):
    size = Size(bundle(1, 0), None, 24)
    assert sizes(size) == (0, 24)
    cluster.append(CPU_NODE)
    assert sizes(size) == (16, 32)
    refuse(autoscaler, CPU=1)
    assert sizes(size) == (16, 24)
    assert sizes(Size(bundle(1, 0), 40, 24)) == (16, 40)


def test_a_cluster_that_cannot_grow_is_asked_for_what_it_holds(cluster, monkeypatch):
    monkeypatch.setattr(capacity, "can_grow", lambda: False)
    cluster.append(GPU_NODE)
    assert sizes(Size(bundle(1, 0), None)) == (8, 8)
    assert sizes(Size(bundle(1, 0), 40)) == (8, 8)
    assert sizes(Size(bundle(0, 0), None)) == (1, 1)
    size = Size(bundle(1, 1), None)
    assert sizes(size) == (1, 1)
    cluster.append(GPU_NODE)  # joined by hand
    assert sizes(size) == (2, 2)
    for cpus, gpus, says in (
        (9, 0, "cpus_per_worker: 9, but no node of the cluster has more than 8"),
        (1, 2, "gpus_per_worker: 2, but no node of the cluster has more than 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            Size(bundle(cpus, gpus), None)
    cluster.append(CPU_NODE)
    with pytest.raises(ConfigError, match="no node of the cluster has 12 CPU and 1 GPU"):
        Size(bundle(12, 1), None)
    with pytest.raises(ConfigError, match=r"memory_gb_per_worker: 40, but no node .* than 30"):
        Size(bundle(1, 0, 40), None)
    with pytest.raises(
        ConfigError, match="min_workers: 100 x 1 CPU do not fit on the cluster's nodes, only 32"
    ):
        Size(bundle(1, 0), None, 100)


def test_what_is_waited_for_is_said_in_a_line(cluster, autoscaler, monkeypatch, caplog):
    monkeypatch.setattr(capacity, "_FIRST_TOLD_S", 0)
    caplog.set_level(logging.INFO)
    wait = Wait(bundle(1, 1))
    wait.look()
    wait.look()  # not said again
    autoscaler.pending_instances.add(ray_node_type_name="gpu_worker")
    Wait(bundle(1, 1)).look()
    cluster.append(GPU_NODE)
    Wait(bundle(1, 1)).look()
    assert [record.getMessage() for record in caplog.records] == [
        "waits for 1 x 1 CPU and 1 GPU: the autoscaler is asked",
        "waits for 1 x 1 CPU and 1 GPU: nodes start: gpu_worker",
        "waits for 1 x 1 CPU and 1 GPU: other work has what there is",
    ]


def refuse(state: AutoscalingState, **amounts: float) -> None:
    state.infeasible_resource_requests.add().resources_bundle.update(amounts)


def test_what_can_never_come_ends_the_job(cluster, autoscaler, monkeypatch):
    monkeypatch.setattr(capacity, "_GIVE_UP_S", 0)
    refuse(autoscaler, CPU=1)
    Wait(bundle(1, 1)).look()  # others are refused
    refuse(autoscaler, CPU=1, GPU=1)
    cluster.append(CPU_NODE)
    with pytest.raises(ConfigError, match=r"gpus_per_worker: 1, but no node .* than 0, and the a"):
        Wait(bundle(1, 1)).look()
    autoscaler.pending_instances.add(ray_node_type_name="gpu_worker")
    Wait(bundle(1, 1)).look()  # one comes, and holds it


def test_what_was_there_once_may_come_again(cluster, autoscaler, monkeypatch, caplog):
    monkeypatch.setattr(capacity, "_GIVE_UP_S", 0)
    refuse(autoscaler, CPU=1)
    wait = Wait(bundle(1, 0))
    wait.over()
    wait.look()


@pytest.mark.usefixtures("ray_session")
def test_room_that_was_lost_is_waited_for_without_an_autoscaler_too(monkeypatch):
    def heard(*said: object) -> None:
        raise KeyboardInterrupt(said[0] % said[1:])

    monkeypatch.setattr(capacity, "_GIVE_UP_S", 0)
    monkeypatch.setattr(capacity, "_LOOK_EVERY_S", 0)
    monkeypatch.setattr(capacity, "_FIRST_TOLD_S", 0)
    monkeypatch.setattr(capacity.logger, "info", heard)
    with pytest.raises(ConfigError, match="9 x 1 CPU do not fit on the cluster's nodes, only 2"):
        await_room(bundle(1, 0), 9)
    with pytest.raises(
        KeyboardInterrupt, match="waits for 9 x 1 CPU: what was lost must come back"
    ):
        await_room(bundle(1, 0), 9, again=True)


def test_ranks_that_start_together_need_room_for_all(cluster, autoscaler, monkeypatch):
    monkeypatch.setattr(capacity, "_GIVE_UP_S", 0)
    cluster += [GPU_NODE, GPU_NODE]
    together = (bundle(0, 1), 3)
    Wait(*together).look()
    asked = autoscaler.infeasible_gang_resource_requests.add()
    for _ in range(3):
        asked.requests.add().resources_bundle.update({"GPU": 1})
    says = "3 x 1 GPU do not fit on the cluster's nodes, only 2"
    with pytest.raises(ConfigError, match=f"{says}, and the autoscaler has no node to add"):
        Wait(*together).look()
    monkeypatch.setattr(capacity, "can_grow", lambda: False)
    with pytest.raises(ConfigError, match=f"{says}$"):
        await_room(*together)


def test_an_autoscaler_that_never_spoke_is_none(cluster, autoscaler, monkeypatch):
    monkeypatch.setattr(capacity, "_GIVE_UP_S", 0)
    autoscaler.autoscaler_state_version = 0
    with pytest.raises(ConfigError, match="cpus_per_worker: 1, but Ray has 0"):
        Wait(bundle(1, 0)).look()


def test_where_gpus_may_come_the_device_must_be_said(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(capacity, "can_grow", lambda: True)
    assert cluster_device("cuda") == "cuda"
    assert cluster_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device: auto, but no GPU is up"):
        cluster_device("auto")
    monkeypatch.setattr(capacity, "can_grow", lambda: False)
    assert cluster_device("auto") == "cpu"
