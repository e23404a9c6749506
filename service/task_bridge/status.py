"""The state of this replica, collected from its parts for health, metrics and the board."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from . import schemas
from .domain.clock import ServerClock
from .domain.follows.event import FollowReport
from .domain.subjects import SubjectNames
from .follower import Follower
from .jetstream.connection import Connection
from .jetstream.monitor import Monitor, MonitoredPart
from .jetstream.replicas import Replicas
from .metrics import Metrics
from .schemas.asyncapi import build_document
from .vcenter.health import combine_apis, find_apis_in_use
from .vcenter.source import VCenterTaskSource
from .watcher import Watcher
from .web.health import (
    BridgeHealth,
    JetStreamHealth,
    NatsHealth,
    ResourceHealth,
    VCenterApiHealth,
    VCenterHealth,
    WebState,
)


class BridgeStatus:
    """The state shown by the web pages. Parts that need NATS are set once it is connected."""

    def __init__(
        self,
        capacity: int,
        names: SubjectNames,
        sources: Mapping[str, VCenterTaskSource],
        metrics: Metrics,
        clock: ServerClock,
        lag_s: Callable[[], float],
    ) -> None:
        self._capacity = capacity
        self._names = names
        self._sources = sources
        self._metrics = metrics
        metrics.capacity.set(capacity)
        metrics.create_alert_counters(sources)
        self._clock = clock
        self._lag_s = lag_s
        self.connection: Connection | None = None
        self.monitor: Monitor | None = None
        self.watcher: Watcher | None = None
        self.follower: Follower | None = None
        self.replicas: Replicas | None = None
        self.instance = ""
        self.consuming = False
        self.stopping = False

    def health(self) -> BridgeHealth:
        """Return the health of the replica from what is known, without any request."""
        watches: Counter[str] = Counter()
        for (vcenter, _), count in self._count_held_watches().items():
            watches[vcenter] += count
        monitor, follows = self.monitor, self.replicas.list_follows() if self.replicas else {}
        return BridgeHealth(
            nats=self._nats_health(),
            jetstream=self._jetstream_health(),
            streams=_resource_healths(monitor.streams()) if monitor else (),
            consumers=_resource_healths(monitor.consumers()) if monitor and self.consuming else (),
            vcenters=tuple(self._vcenter_health(name, watches[name]) for name in sorted({*self._sources, *watches})),
            follows=tuple(follows[key] for key in sorted(follows)),
            own_follows=frozenset(report.key for report in self._own_follows()),
            unheld_follows=monitor.unheld_follows if monitor else 0,
            held=self.watcher.held_count if self.watcher else 0,
            waiting=monitor.unheld_count if monitor else None,
            capacity=self._capacity,
            loop_lag_s=self._lag_s(),
            clock_difference_s=self._clock.difference_s,
            stopping=self.stopping,
            instance=self.instance,
        )

    def server_time(self) -> float:
        """Return Unix seconds by nats-server's clock, which the times of watches and events go by."""
        return self._clock.now()

    def metrics(self) -> CollectorRegistry:
        """Return all metrics, with gauges like ages set to their current values."""
        metrics = self._metrics
        metrics.watches.clear()
        metrics.last_look_age.clear()  # an API that isn't in use has no age
        for (vcenter, status), count in self._count_held_watches().items():
            metrics.watches.labels(vcenter, status).set(count)
        if self.monitor and self.monitor.unheld_count is not None:
            metrics.watches_waiting.set(self.monitor.unheld_count)
        self._set_follow_metrics()
        for name, source in self._sources.items():
            metrics.budget_used.labels(name).set(max(0.0, source.budget_used))
            apis = source.report_health()
            for api in find_apis_in_use(apis):
                age_s = _age_s(apis[api].last_good_poll_at)
                metrics.last_look_age.labels(name, api).set(math.nan if age_s is None else age_s)
        difference_s = self._clock.difference_s
        metrics.clock_difference.set(math.nan if difference_s is None else difference_s)
        metrics.nats_connected.set(self._nats_health().connected)
        metrics.ready.set(self.health().status != "unready")
        return metrics.registry

    def asyncapi(self) -> bytes:
        """Return the AsyncAPI document of this bridge's subjects as JSON."""
        return schemas.format_document(build_document(self._names)).encode()

    def _count_held_watches(self) -> Counter[tuple[str, str]]:
        return self.watcher.held_by_status() if self.watcher else Counter()

    def _own_follows(self) -> list[FollowReport]:
        return self.follower.reports() if self.follower else []

    def _set_follow_metrics(self) -> None:
        metrics, reports = self._metrics, self._own_follows()
        metrics.follows.clear()
        metrics.follow_read_age.clear()
        for (vcenter, state), count in Counter((report.vcenter, report.state) for report in reports).items():
            metrics.follows.labels(vcenter, state).set(count)
        for report in reports:
            age_s = math.nan if report.read_age_s is None else report.read_age_s
            metrics.follow_read_age.labels(report.vcenter, report.name).set(age_s)
        metrics.follows_unheld.set(self.monitor.unheld_follows if self.monitor else 0)

    def _nats_health(self) -> NatsHealth:
        connection = self.connection
        if connection is None:
            return NatsHealth(connected=False, reason="not connected yet")
        return NatsHealth(connection.reason is None, connection.reason or connection.missing_permission)

    def _jetstream_health(self) -> JetStreamHealth:
        if not self._nats_health().connected:
            return JetStreamHealth(ok=False, reason="NATS is away")
        reason = self.monitor.trouble if self.monitor else "not checked yet"
        return JetStreamHealth(reason is None, reason)

    def _vcenter_health(self, name: str, watches: int) -> VCenterHealth:
        source = self._sources.get(name)
        if source is None:
            reason = "no longer in the settings; its watches are kept but not polled"
            return VCenterHealth(name, "unconfigured", reason, None, watches)
        apis = source.report_health()
        in_use, whole = find_apis_in_use(apis), combine_apis(apis)
        details = tuple(
            VCenterApiHealth(
                api, one.state, one.reason, _age_s(one.last_good_poll_at), one.watches, one.held_back, api in in_use
            )
            for api, one in apis.items()
        )
        return VCenterHealth(name, whole.state, whole.reason, _age_s(whole.last_good_poll_at), watches, details)


def _age_s(at: float | None) -> float | None:
    return None if at is None else max(0.0, time.monotonic() - at)


def _resource_healths(parts: tuple[MonitoredPart, ...]) -> tuple[ResourceHealth, ...]:
    return tuple(ResourceHealth(part.name, part.reason is None, part.reason or part.warning) for part in parts)


_BRIDGE_STATUS_IS_A_WEB_STATE: type[WebState] = BridgeStatus
