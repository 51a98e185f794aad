"""What Prometheus reads at /metrics. Labels are models of the service and status codes: never what a client made up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.dispatch import Dispatcher

# From a token of a small model to a long answer of a big one.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The counters of one API process."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._registry = CollectorRegistry(auto_describe=False)
        registry = self._registry
        self.requests = Counter(
            "vlaunch_requests", "Requests that were answered", ("model", "status"), registry=registry
        )
        self.retries = Counter(
            "vlaunch_retries", "Times that a request went on to another worker", ("why",), registry=registry
        )
        self.first_byte = Histogram(
            "vlaunch_first_byte_seconds",
            "From the whole request to the first byte of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.duration = Histogram(
            "vlaunch_request_seconds",
            "From the whole request to its end",
            buckets=_SECONDS,
            registry=registry,
        )
        self.open = Gauge("vlaunch_open_requests", "Requests that are open now", registry=registry)
        self.controller_up = Gauge(
            "vlaunch_controller_up", "Whether the controller answers", registry=registry
        )
        self._workers = Gauge(
            "vlaunch_workers", "Workers by model and state", ("model", "state"), registry=registry
        )
        self._load = Gauge(
            "vlaunch_worker_load", "Requests per worker", ("worker", "kind"), registry=registry
        )

    def text(self) -> bytes:
        """The exposition format; what is known of workers is read from the table now."""
        self._workers.clear()
        self._load.clear()
        for place in self._dispatcher.places():
            for model in place.said.models:
                self._workers.labels(model, place.said.state).inc()
            self._load.labels(place.said.url, "running").set(place.said.running)
            self._load.labels(place.said.url, "waiting").set(place.said.waiting)
            self._load.labels(place.said.url, "sent").set(place.sent)
        return generate_latest(self._registry)
