"""`viaduct serve`: searches over HTTP, and a page.

A server process speaks HTTP with clients and hands searches to Ray Serve's replicas, which hold the
models and the index.

limits, access      what clients may ask, and who
connections         HTTP that no slow or broken client holds up
search_request      a search as clients write it
app, door           the routes, and what stands before all of them
searches, metrics   searches under way; what Prometheus is told
catalogue           pictures by uid
watching            indexes and takedowns that change meanwhile
batching, replicas  searches answered together
running             all of it put together
page/               what people see
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jobs.cluster import ClusterConfig, session
from jobs.device import Device
from jobs.search_places import PlacesConfig
from jobs.serve.access import open_access
from jobs.serve.limits import LimitsConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve searches of an index over HTTP, with a page at `/` and the API's own at `/docs`."""

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder or URI of an index."""

    host: str = "127.0.0.1"
    """Address to listen at. By default this machine alone can ask; `0.0.0.0` or `::` lets all
    others ask, and should go with a token."""

    port: int = 8000
    """Port to listen at; 0 takes any that is free."""

    token_file: str | None = None
    """File with a token that whoever asks must know: as `Authorization: Bearer TOKEN`, and in the
    page by signing in. Without it everybody is answered who can reach the server."""

    allow_host: tuple[str, ...] = ()
    """Further names that a server on loopback goes by, such as that of a proxy before it. All
    others are refused, for any page of the web could have its name point to this machine."""

    replicas: int = 1
    """Processes that hold the models and answer searches."""

    threads: int | None = None
    """Threads of each replica on a CPU; by default the cores are shared out."""

    max_batch: int = 64
    """Searches by words that a replica answers together, at most; those that wait are."""

    gpus_per_replica: float = 0.0
    """GPUs of each replica; by default one where Ray has any."""

    device: Device = "auto"
    """Where replicas compute; `auto` takes GPUs where Ray has any."""

    limits: LimitsConfig = field(default_factory=LimitsConfig)

    places: PlacesConfig = field(default_factory=PlacesConfig)

    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        for name in ("replicas", "max_batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is not positive")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port: {self.port} is no port")
        if self.gpus_per_replica < 0:
            raise ConfigError(f"gpus_per_replica: {self.gpus_per_replica} is negative")

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        from jobs.serve import running  # Ray Serve takes a second to import, --help should not

        access = open_access(self.host, self.token_file, self.allow_host)
        catalogue = running.open_catalogue(self.index, self.places)
        with running.listening(self.host, self.port) as listener:
            with session(self.cluster):
                with running.replicas(self) as answer:
                    running.serve_http(listener, answer, catalogue, access, self)
