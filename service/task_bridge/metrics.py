"""Prometheus metrics. Their names are public; labels are bounded (never a task id)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from . import __version__

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_VCENTER_BUCKETS_S = (0.1, 1, 5, 10)  # few: each is a series per vCenter and operation; an alert asks for 5 s
_DETECTION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 15, 30, 60, 300, 3600)


class Metrics:
    """The metrics of one process, in a registry of its own so that tests can have several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"task_bridge_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"task_bridge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"task_bridge_{name}", text, labels, buckets=buckets, registry=registry)

        self.watches = gauge("watches", "Watches held by this replica now", "vcenter", "status")
        self.watches_waiting = gauge("watches_waiting", "Watches stored and held by no replica")
        self.events = counter("events", "Events stored", "vcenter", "kind", "outcome")
        self.requests = counter("requests", "Watch requests by outcome", "outcome")
        self.rejected = counter("rejected", "Requests rejected", "code")
        self.last_look_age = gauge("last_look_age_seconds", "Seconds since an API answered a poll", "vcenter", "api")
        self.vcenter_requests = counter("vcenter_requests", "HTTP requests to vCenter", "vcenter", "operation", "code")
        self.vcenter_logins = counter("vcenter_logins", "Logins by result", "vcenter", "result")
        self.looks = counter("looks", "Task polls (a list of 500 tasks is 500)", "vcenter")
        self.detection = histogram(
            "detection_seconds", "From a task's end in vCenter to its stored event", _DETECTION_BUCKETS_S
        )
        self.publish_retries = counter("publish_retries", "Publishes of an event that were retried")
        self.lost_memories = counter("lost_memories", "Watches whose last event had gone from the stream")
        self.fenced = counter("fenced", "Publishes refused because another owner wrote first")
        self.follows = gauge("follows", "Follows run by this replica now", "vcenter", "state")
        self.follows_unheld = gauge("follows_unheld", "Follows stored and run by no replica")
        self.follow_read_age = gauge(
            "follow_read_age_seconds", "Seconds since a follow last read vCenter's tasks", "vcenter", "follow"
        )
        self.follow_found = counter("follow_found", "Tasks that follows found and that match them", "vcenter")
        self.follow_watches = counter("follow_watches", "Watches that follows started", "vcenter")
        self.follow_gaps = counter("follow_gaps", "Gaps: spans for which a follow can't be shown complete", "vcenter")
        # Further metrics for operators.
        self.ready = gauge("ready", "1 while /readyz returns 200")
        self.capacity = gauge("capacity", "The most watches that this replica holds")
        self.takeovers = counter("takeovers", "Watches taken over from another owner")
        self.heartbeat_lag = gauge("heartbeat_lag_seconds", "Delay of the last round of heartbeats")
        self.publish_seconds = histogram(
            "publish_seconds", "From the publish of an event to JetStream's answer", _LATENCY_BUCKETS_S
        )
        self.vcenter_seconds = histogram(
            "vcenter_request_seconds",
            "Response time of vCenter",
            _VCENTER_BUCKETS_S,
            "vcenter",
            "operation",
        )
        self.budget_used = gauge(
            "vcenter_budget_used_ratio",
            "Used share of the request limit of vCenter; above 1 polls get rarer",
            "vcenter",
        )
        self.nats_connected = gauge("nats_connected", "1 while connected to NATS")
        self.event_loop_lag = gauge("event_loop_lag_seconds", "Delay of the event loop's ticks")
        self.clock_difference = gauge(
            "clock_difference_seconds", "The clock of this host minus nats-server's, at the last measurement"
        )
        self.http_requests = counter("http_requests", "Requests to the API over HTTP", "verb", "code")
        gauge("build_info", "Always 1; the label is the version", "version").labels(__version__).set(1)

    def create_alert_counters(self, vcenters: Iterable[str]) -> None:
        """Create counters used by alerts at 0; Prometheus doesn't see a counter that appears at 1 as an increase."""
        for name in vcenters:
            for result in ("ok", "failed", "refused", "session_limit"):
                self.vcenter_logins.labels(name, result)
            for outcome in ("lost", "denied"):
                self.events.labels(name, "abandoned", outcome)
            self.follow_gaps.labels(name)
        for code in ("invalid_request", "unknown_vcenter"):
            self.rejected.labels(code)
