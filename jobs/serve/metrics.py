"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_QUERIES = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of one server; labels are the server's own words, never a client's."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "viaduct_http_requests",
            "Requests answered, by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "viaduct_http_request_seconds",
            "From the head of a request to the end of its answer, by route.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.searches_under_way = Gauge(
            "viaduct_searches_under_way", "Searches at this moment.", registry=self._registry
        )
        self.searches = Counter(
            "viaduct_searches",
            "Searches answered, by what they search for (text, picture, both) and what they find.",
            ("by", "find"),
            registry=self._registry,
        )
        self.batch_queries = Histogram(
            "viaduct_batch_queries",
            "Queries that a replica answered together with this one, itself among them.",
            buckets=_QUERIES,
            registry=self._registry,
        )
        self.replica_seconds = Histogram(
            "viaduct_replica_seconds",
            "From a query's arrival at a replica to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self._registry)
