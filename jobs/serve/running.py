"""The server put together: its replicas on Ray, and HTTP in this process."""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ray
import uvicorn
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from indexes.retrieval import RetrievalIndex
from jobs.capacity import actor_options, await_room, bundle
from jobs.cluster import cluster_device
from jobs.search_places import Places, PlacesConfig, absolute
from jobs.serve.access import Access
from jobs.serve.app import make_app
from jobs.serve.catalogue import Catalogue, changing_files
from jobs.serve.connections import BoundedConnection
from jobs.serve.limits import LimitsConfig
from jobs.serve.metrics import Metrics
from jobs.serve.replicas import Asked, Refusal, Replica, ReplicaWork, Reply
from jobs.serve.search_request import Refused
from jobs.serve.searches import Answer
from jobs.serve.watching import Watched
from pipeline.errors import ConfigError, first_line

if TYPE_CHECKING:
    from jobs.serve import Serve

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_KEEP_ALIVE_S = 15
_SHUTDOWN_S = 3
_MAX_HEAVY_BATCH = 8
"""Searches with a picture or with re-ranking that are answered together: each is work enough."""


def open_catalogue(location: str, config: PlacesConfig) -> Watched[Catalogue]:
    """The pictures of an index, checked to be searchable.

    Raises:
        ConfigError: there is no index, or what it needs is not there or does not fit it.
    """
    index = RetrievalIndex.open(location)
    places = Places(index, config)
    places.open_features(places.open_checkpoint())
    files = changing_files(index, places.open_pairs())

    def make() -> Catalogue:
        opened = RetrievalIndex.open(location)
        return Catalogue(opened, Places(opened, config).open_pairs())

    return Watched(files, make, files_of=lambda catalogue: catalogue.files)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; raises ConfigError where the address cannot be had."""
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        # Connections inherit it. Without, an answer's body waits 40 ms until its head is confirmed;
        # asyncio sees to that on sockets alone that name their protocol, and this one does not.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"host, port: {host}, {port}: cannot be had: {reason}") from None
    with contextlib.closing(listener):
        yield listener


@contextlib.contextmanager
def replicas(config: "Serve") -> Iterator[Answer]:
    """Whoever answers searches, on Ray, which must be there.

    Raises:
        ConfigError: there are fewer cores than replicas, or a replica cannot start.
    """
    device = cluster_device(config.device)
    cores = int(ray.cluster_resources().get("CPU", 0))
    if device == "cpu" and config.replicas > cores:
        raise ConfigError(f"replicas: {config.replicas}, but Ray has {cores} cores")
    work = ReplicaWork(
        index=absolute(config.index),
        places=config.places.from_anywhere(),
        pictures=config.limits.pictures,
        max_batch=config.max_batch,
        max_heavy_batch=_MAX_HEAVY_BATCH,
        threads=config.threads or max(1, (os.cpu_count() or 1) // config.replicas),
        device=device,
    )
    gpus = (config.gpus_per_replica or 1.0) if device == "cuda" else 0.0
    cpus = 0.0 if gpus else 1.0
    each = bundle(cpus, gpus)
    await_room(each, config.replicas)
    deployment = serve.deployment(
        Replica,
        name="search",
        num_replicas=config.replicas,
        max_ongoing_requests=config.limits.max_searches,
        ray_actor_options=actor_options(each),
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
    )
    name = f"viaduct-{uuid.uuid4().hex[:8]}"
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
    try:
        try:
            handle = serve.run(
                deployment.bind(work), name=name, route_prefix=None, logging_config=quiet
            )
        except RuntimeError as error:
            raise ConfigError(
                f"index: {config.index}: no replica starts: {first_line(error)}"
            ) from error
        yield functools.partial(_ask, handle)
    finally:
        serve.delete(name)


async def _ask(handle: "serve.handle.DeploymentHandle", asked: Asked) -> Reply | Refusal:
    """A replica's answer; raises Refused while none can answer, or what a replica raised."""
    try:
        return await handle.remote(asked)
    except ray.exceptions.RayTaskError:
        raise
    except (ray.exceptions.RayError, RayServeException) as error:
        logger.warning("replica lost error=%s", first_line(error))
        raise Refused(503, "busy: a replica was lost; try again", 1) from None


def serve_http(
    listener: socket.socket,
    answer: Answer,
    catalogue: Watched[Catalogue],
    access: Access,
    config: "Serve",
) -> None:
    """Answer clients until Ctrl-C or SIGTERM; says on standard output where."""
    app = make_app(answer, catalogue, access, config.limits, Metrics())
    server = http_server(app, config.limits)
    host, port = listener.getsockname()[:2]
    if access.names is None and access.token is None:
        logger.warning(
            "everybody who reaches %s port %d is answered; --token-file asks", host, port
        )
    sys.stdout.write(f"http://{f'[{host}]' if ':' in host else host}:{port}/\n")
    sys.stdout.flush()
    asyncio.run(server.serve(sockets=[listener]))


def http_server(app: ASGIApp, limits: LimitsConfig) -> uvicorn.Server:
    """What speaks HTTP for an application, within bounds; `serve(sockets=[...])` runs it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=functools.partial(BoundedConnection, limits=limits),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
