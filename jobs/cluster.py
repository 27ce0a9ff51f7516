"""The Ray session a job runs in: a cluster's where an address is given, else one of its own."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the work runs."""

    address: str | None = None
    """Ray cluster to use (`auto`, `ray://...` or `HOST:PORT`; also RAY_ADDRESS); by default Ray
    starts inside the job, on this machine."""

    cpus: int | None = None
    """Cores the job's own Ray may use; by default all. Of no effect on a cluster."""

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ConfigError(f"cpus: {self.cpus} is not positive")


def cluster_device(device: Literal["auto", "cuda", "cpu"]) -> str:
    """Where workers compute: `auto` takes GPUs where Ray, which must be there, has any.

    Raises:
        ConfigError: it has none now, but may get some: then the user must say it, for the device
            is part of what is made.
    """
    import ray

    from jobs.capacity import can_grow

    if device != "auto":
        return device
    if ray.cluster_resources().get("GPU", 0) > 0:
        return "cuda"
    if can_grow():
        raise ConfigError(
            "device: auto, but no GPU is up on this cluster, which can grow; say --device cuda, "
            "so that one comes, or --device cpu"
        )
    return "cpu"


def quieten() -> None:
    """Have Ray report to nobody, and not say at each start how it asks for a token."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


@contextlib.contextmanager
def session(config: ClusterConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Be connected to Ray; a session that is there already is used and left alone.

    Args:
        config: see there.
        dashboard: whether the job's own Ray has one, on loopback. Ray Train asks it after its own
            actors, and complains every second where there is none.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    quieten()
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **options)
        else:
            # Shards travel through files, never through the object store.
            ray.init(
                address="local",
                num_cpus=config.cpus,
                object_store_memory=200 << 20,
                include_dashboard=dashboard,
                **options,
            )
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"address: {address!r}: no Ray cluster answers: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own, which exits on the spot
    try:
        yield
    finally:
        ray.shutdown()
