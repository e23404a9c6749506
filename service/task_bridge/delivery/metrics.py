"""Prometheus metrics of deliveries. Labels are bounded: the names of deliveries and HTTP statuses."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge


class DeliveryMetrics:
    """The metrics of the deliveries of a process, in its registry."""

    def __init__(self, registry: CollectorRegistry, deliveries: Iterable[str]) -> None:
        self.tries = Counter(
            "task_bridge_deliveries",
            "Requests that sent an event, by HTTP status, or timeout, error or template",
            ("delivery", "code"),
            registry=registry,
        )
        self.oldest = Gauge(
            "task_bridge_delivery_oldest_seconds",
            "Age of the oldest event that is being delivered",
            ("delivery",),
            registry=registry,
        )
        self.undelivered = Counter(
            "task_bridge_undelivered", "Events that could not be delivered", ("delivery",), registry=registry
        )
        for name in deliveries:
            self.undelivered.labels(name)
            self.oldest.labels(name).set(0)
