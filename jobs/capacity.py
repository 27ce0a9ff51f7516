"""What a Ray cluster holds now, what it can grow to, and what a job waits for."""

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import ray

from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

Bundle = Mapping[str, float]
"""What one worker reserves: amounts of CPU, GPU and memory, in bytes, none of them zero."""

_MOST_ASKED = 256
"""Workers asked for at once beyond what there is."""
_ASK_AGAIN_S = 60.0
_LOOK_EVERY_S = 5.0
_FIRST_TOLD_S = 10.0
_TOLD_EVERY_S = 60.0
_GIVE_UP_S = 30.0
"""For so long the autoscaler must have had nothing that could hold a worker."""


_FIELDS = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker", "memory": "memory_gb_per_worker"}
"""Each kind of a bundle, and the option that asks for it."""
_GB = 1e9


def bundle(cpus: float, gpus: float, memory_gb: float = 0.0) -> Bundle:
    """What a worker of so many cores, GPUs and gigabytes (10^9 bytes) reserves."""
    amounts = zip(_FIELDS, (cpus, gpus, memory_gb * _GB), strict=True)
    return {kind: each for kind, each in amounts if each}


def actor_options(each: Bundle) -> dict[str, float]:
    """The options by which Ray gives one of its actors or tasks a bundle."""
    options = {"num_cpus": each.get("CPU", 0.0), "num_gpus": each.get("GPU", 0.0)}
    return options | ({"memory": each["memory"]} if "memory" in each else {})


def num_held(each: Bundle) -> int:
    """How many workers fit on the nodes that are up, whoever uses them now."""
    return sum(_fitting(node, each) for node in _nodes())


def can_grow() -> bool:
    """Whether the cluster has an autoscaler that brings up nodes for workers that wait.

    Clusters of `ray up` and KubeRay have (version 2); the Ray of a job's own, and what
    `ray start` makes, have none.
    """
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    # Through Ray Client nobody can be asked.
    return not ray.util.client.ray.is_connected() and is_autoscaler_v2(fetch_from_server=True)


class Size:
    """How many workers a pool asks for, as the cluster grows and shrinks.

    On a cluster that cannot grow as many as it holds. On one that can, a given number is asked for
    from the beginning; without one, first the fewest, or a worker more than there is room for, then
    as many as came, so that it doubles. Where the autoscaler refuses, it is asked again a minute
    later.
    """

    def __init__(self, each: Bundle, most: int | None, fewest: int = 1) -> None:
        """For workers of this size, at most so many, and these from the beginning.

        Raises:
            ConfigError: the nodes do not hold the fewest, and none can come.
        """
        self._each, self._most, self._fewest = each, most, fewest
        self._grows = can_grow()
        self._first = self.held = self._held()
        self._looked = time.monotonic()
        self._ask_from = 0.0
        _require(each, fewest, "min_workers: ")

    held: int
    """Workers that the cluster holds."""

    @property
    def wanted(self) -> int:
        """Workers that it is asked for."""
        if not self._grows:
            return self.held
        if self._most is not None:
            return self._most
        if self.held and self._looked < self._ask_from:
            return max(self.held, self._fewest)
        return max(self._fewest, self.held + min(_MOST_ASKED, max(1, self.held - self._first)))

    def look(self) -> None:
        """See what the cluster holds by now."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self.held, self._looked = self._held(), now
        asks_for_more = self._grows and self._most is None and now >= self._ask_from
        if asks_for_more and _is_refused(_autoscaling_state(), self._each):
            self._ask_from = now + _ASK_AGAIN_S

    def _held(self) -> int:
        held = num_held(self._each) if self._each else self._most or 1
        return held if self._most is None else min(held, self._most)


class Wait:
    """Says in the log what is waited for, and gives up where it can never come."""

    def __init__(self, each: Bundle, count: int = 1) -> None:
        """For so many workers of a size, which start together."""
        self._each, self._count = each, count
        self._gives_up = True
        self._begin()

    def over(self) -> None:
        """Something has started: what is lost now came once, and may come again."""
        self._gives_up = False
        self._begin()

    def _begin(self) -> None:
        self._begun = self._looked = time.monotonic()
        self._told = float("-inf")
        self._hopeless_since: float | None = None

    def look(self) -> None:
        """Called again and again while nothing has started.

        Raises:
            ConfigError: the nodes that are there could never hold it, and none is to come.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        why = "other work has what there is"
        if self._count > num_held(self._each):
            starting, refused = _autoscaler(self._each)
            asked = "the autoscaler is asked" if can_grow() else "what was lost must come back"
            why = f"nodes start: {', '.join(starting)}" if starting else asked
            hopeless = refused and not starting and self._gives_up
            self._hopeless_since = (self._hopeless_since or now) if hopeless else None
            if self._hopeless_since and now - self._hopeless_since >= _GIVE_UP_S:
                raise ConfigError(
                    f"{_no_room(self._each, self._count)}, and the autoscaler has no node to add"
                )
        if now - self._begun >= _FIRST_TOLD_S and now - self._told >= _TOLD_EVERY_S:
            self._told = now
            logger.info("waits for %d x %s: %s", self._count, _words(self._each), why)


def await_room(each: Bundle, count: int = 1, *, again: bool = False) -> None:
    """Wait until the cluster has free room for so many workers, then leave it to whoever follows.

    Args:
        each: what a worker reserves.
        count: workers, which start together.
        again: whether there was room before; what was lost since may come back.

    Raises:
        ConfigError: there never will be, and there never was.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    waiting = Wait(each, count)
    if again:
        waiting.over()
    else:
        _require(each, count)
    group = placement_group([dict(each)] * count)
    try:
        while not group.wait(1):
            waiting.look()
    finally:
        remove_placement_group(group)


def _require(each: Bundle, count: int = 1, asked_by: str = "") -> None:
    """Raise ConfigError where the nodes do not hold so many workers, and none can come."""
    if num_held(each) < count and not can_grow():
        raise ConfigError(_no_room(each, count, asked_by))


def _nodes() -> list[Mapping[str, float]]:
    """Resources of the nodes that are up, whole."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fitting(node: Bundle, each: Bundle) -> int:
    """Workers that fit on a node; Ray's amounts have four digits behind the point."""
    return min((int(node.get(kind, 0) / amount + 1e-6) for kind, amount in each.items()), default=1)


def _no_room(each: Bundle, count: int, asked_by: str = "") -> str:
    """Why so many workers have no place; `asked_by` begins it if their number is to blame."""
    if held := num_held(each):
        return f"{asked_by}{count} x {_words(each)} do not fit on the cluster's nodes, only {held}"
    nodes = _nodes()
    for kind, amount in each.items():
        most = max((node.get(kind, 0) for node in nodes), default=0)
        if most < amount:
            where = "Ray has" if len(nodes) == 1 else "no node of the cluster has more than"
            return f"{_FIELDS[kind]}: {_told(kind, amount)}, but {where} {_told(kind, most)}"
    return f"{', '.join(_FIELDS[kind] for kind in each)}: no node of the cluster has {_words(each)}"


def _words(each: Bundle) -> str:
    words = (
        f"{_told(kind, amount)} {'GB' if kind == 'memory' else kind}"
        for kind, amount in each.items()
    )
    return " and ".join(words) or "a worker"


def _told(kind: str, amount: float) -> str:
    return f"{amount / _GB if kind == 'memory' else amount:g}"


def _autoscaler(each: Bundle) -> tuple[list[str], bool]:
    """Types of the nodes that start, and whether there is none for such a worker."""
    state = _autoscaling_state()
    if not state.autoscaler_state_version:  # nobody has ever looked at what is asked for
        return [], True
    starting = {its.ray_node_type_name for its in state.pending_instances}
    starting |= {its.ray_node_type_name for its in state.pending_instance_requests}
    return sorted(starting), _is_refused(state, each)


def _is_refused(state: Any, each: Bundle) -> bool:
    """Whether the autoscaler had no node to add for such a worker."""
    refused = list(state.infeasible_resource_requests)
    for gang in state.infeasible_gang_resource_requests:
        refused += gang.requests
    return any(_asks_for(request.resources_bundle, each) for request in refused)


def _asks_for(asked: Mapping[str, float], each: Bundle) -> bool:
    pairs = ((asked.get(kind, 0), each.get(kind, 0)) for kind in _FIELDS)
    return all(math.isclose(its, wanted, abs_tol=1e-6) for its, wanted in pairs)


def _autoscaling_state() -> Any:
    """What Ray's autoscaler told last."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = global_worker.gcs_client.get_cluster_status()
    return GetClusterStatusReply.FromString(reply).autoscaling_state
