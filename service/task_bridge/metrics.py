"""What the bridge counts: the contract's names, with bounded labels only (never a task id)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from . import __version__

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DETECTION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 15, 30, 60, 300, 3600)


class Metrics:
    """One set of counters a process, in a registry of its own so that tests can have many."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"task_bridge_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"task_bridge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"task_bridge_{name}", text, labels, buckets=buckets, registry=registry)

        self.watches = gauge("watches", "Watches held by this replica now", "vcenter", "status")
        self.watches_waiting = gauge("watches_waiting", "Watches stored and held by nobody")
        self.events = counter("events", "Events stored", "vcenter", "kind", "outcome")
        self.requests = counter("requests", "Watch requests by what became of them", "outcome")
        self.rejected = counter("rejected", "Requests rejected", "code")
        self.last_look_age = gauge("last_look_age_seconds", "Since the last good look", "vcenter")
        self.vcenter_requests = counter("vcenter_requests", "HTTP requests to vCenter", "vcenter", "operation", "code")
        self.vcenter_logins = counter("vcenter_logins", "Logins by result", "vcenter", "result")
        self.looks = counter("looks", "Task looks (a list of 500 tasks is 500)", "vcenter")
        self.detection = histogram(
            "detection_seconds", "From a task's end in vCenter to its event in the stream", _DETECTION_BUCKETS_S
        )
        self.publish_retries = counter("publish_retries", "Publishes of an event tried again")
        self.fenced = counter("fenced", "Publishes refused because another owner wrote")
        # What an operator needs besides the names that are promised.
        self.ready = gauge("ready", "1 while /readyz answers 200")
        self.capacity = gauge("capacity", "Watches that this replica holds at most")
        self.takeovers = counter("takeovers", "Watches taken up that were handed out before: another owner is gone")
        self.heartbeat_lag = gauge("heartbeat_lag_seconds", "How late the last round of heartbeats ended")
        self.publish_seconds = histogram(
            "publish_seconds", "From an event's publish to JetStream's answer", _LATENCY_BUCKETS_S
        )
        self.vcenter_seconds = histogram(
            "vcenter_request_seconds",
            "How long vCenter takes to answer",
            _LATENCY_BUCKETS_S,
            "vcenter",
            "operation",
        )
        self.budget_used = gauge(
            "vcenter_budget_used_ratio", "Of the requests that vCenter may get; above 1 looks get rarer", "vcenter"
        )
        self.nats_connected = gauge("nats_connected", "1 while connected to NATS")
        self.event_loop_lag = gauge("event_loop_lag_seconds", "How late the event loop ticks")
        gauge("build_info", "1, by version", "version").labels(__version__).set(1)

    def begin(self, vcenters: Iterable[str]) -> None:
        """What alerts ask the growth of is there at 0: to Prometheus a count that comes up as 1 hasn't grown."""
        for name in vcenters:
            for result in ("ok", "failed", "refused", "session_limit"):
                self.vcenter_logins.labels(name, result)
            for outcome in ("lost", "denied"):
                self.events.labels(name, "abandoned", outcome)
        for code in ("invalid_request", "unknown_vcenter"):
            self.rejected.labels(code)
