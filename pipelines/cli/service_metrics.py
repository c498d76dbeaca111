"""What `enigma serve` tells Prometheus: requests, tokens, times, its queue and its version."""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServiceMetrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "enigma_requests", "Requests for a text, by HTTP status (499: the client left)",
            ["status"], registry=self._registry,
        )  # fmt: skip
        self._tokens = Counter("enigma_tokens", "Tokens generated", registry=self._registry)
        self._generation_s = Histogram(
            "enigma_generation_seconds", "Time to generate one text, without waiting",
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._latency_s = Histogram(
            "enigma_request_seconds", "Time of one request, with waiting",
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._queue = Gauge(
            "enigma_queue_length", "Requests waiting or being answered", registry=self._registry
        )
        self._served = Gauge(
            "enigma_served_version", "Version of the model that answers", registry=self._registry
        )
        self._wanted = Gauge(
            "enigma_wanted_version", "Version that the alias names", registry=self._registry
        )
        self._degraded = Gauge(
            "enigma_degraded", "1 if the wanted version is not served", registry=self._registry
        )

    def generated(self, tokens: int, elapsed_s: float) -> None:
        """Count what one turn generated."""
        self._tokens.inc(tokens)
        self._generation_s.observe(elapsed_s)

    def answered(self, status: int, elapsed_s: float) -> None:
        """Count a request by the status of its answer."""
        self._requests.labels(str(status)).inc()
        self._latency_s.observe(elapsed_s)

    def page(self, *, queue_length: int, served: str, wanted: str, degraded: bool) -> bytes:
        """Return the page in Prometheus' text format."""
        self._queue.set(queue_length)
        self._served.set(int(served))
        self._wanted.set(int(wanted))
        self._degraded.set(degraded)
        return generate_latest(self._registry)
