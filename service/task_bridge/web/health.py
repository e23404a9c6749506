"""How the bridge is: what the pages are told, and what readiness makes of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry

from .. import __version__
from ..domain.board import WatchBoard

Readiness = Literal["ok", "degraded", "unready"]

LAG_LIMIT_S = 0.5
"""Lag from which a reason is told; the alert on it goes by the same."""


@dataclass(frozen=True, slots=True)
class NatsHealth:
    """`reason`: why the bridge can't work with it, connected or not."""

    connected: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JetStreamHealth:
    """Whether it answers the bridge, and else why not. A stream can be bad all the same, and says so itself."""

    ok: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ResourceHealth:
    """A stream or a consumer: whether the bridge can work with it, and else why not."""

    name: str
    ok: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class VCenterHealth:
    """`degraded`: from a failed look or login until a good one; `unknown`: not looked at yet; `unconfigured`:
    there are watches, but no settings. `watches`: held by this replica."""

    name: str
    state: Literal["ok", "degraded", "unknown", "unconfigured"]
    reason: str | None = None
    last_good_poll_age_s: float | None = None
    watches: int = 0


@dataclass(frozen=True, slots=True)
class BridgeHealth:
    """`held` of at most `capacity` watches by this replica; `waiting`: stored and held by nobody, None if unknown.

    Streams and consumers are listed once they are looked for; none at all counts as not ready. `instance` is what
    this replica writes into the events that are its own.
    """

    nats: NatsHealth
    jetstream: JetStreamHealth = JetStreamHealth(ok=False, reason="not looked for yet")
    streams: tuple[ResourceHealth, ...] = ()
    consumers: tuple[ResourceHealth, ...] = ()
    vcenters: tuple[VCenterHealth, ...] = ()
    held: int = 0
    waiting: int | None = None
    capacity: int = 0
    loop_lag_s: float = 0.0
    stopping: bool = False
    instance: str = ""

    @property
    def status(self) -> Readiness:
        """`unready` only for what stops the service; a vCenter that is away degrades it."""
        nats_ok = self.nats.connected and self.nats.reason is None
        if self.stopping or not nats_ok or not _all_ok(self.streams) or not _all_ok(self.consumers):
            return "unready"
        return "degraded" if any(vcenter.state == "degraded" for vcenter in self.vcenters) else "ok"

    @property
    def capacity_reason(self) -> str | None:
        """Why this replica takes no new watches, None while it has room."""
        if self.held < self.capacity:
            return None
        return f"held {self.held} of {self.capacity}: new watches wait for another replica, or for one of these to end"

    @property
    def loop_lag_reason(self) -> str | None:
        """What a late event loop means, None while it is in time."""
        if self.loop_lag_s <= LAG_LIMIT_S:
            return None
        return f"up to {self.loop_lag_s:.1f} s late within the last minute: CPU is short, or too many watches are held"


class WebState(Protocol):
    """What the pages ask. Nothing here waits: health is what is known already."""

    def health(self) -> BridgeHealth: ...

    def metrics(self) -> CollectorRegistry:
        """Asked at each scrape: the moment to set gauges that grow by themselves, like ages."""
        ...

    def asyncapi(self) -> bytes:
        """The AsyncAPI document as JSON."""
        ...


class BoardSource(Protocol):
    """What the board shows besides: the watches of all replicas, read while somebody looks."""

    @property
    def board(self) -> WatchBoard | None:
        """None until it was read."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it isn't up to date."""
        ...

    def keep_current(self) -> AbstractContextManager[None]: ...


def readiness(health: BridgeHealth) -> dict[str, Any]:
    """The body of `/readyz`."""
    return {
        "status": health.status,
        "version": __version__,
        "stopping": health.stopping,
        "nats": asdict(health.nats),
        "jetstream": asdict(health.jetstream),
        "streams": [asdict(stream) for stream in health.streams],
        "consumers": [asdict(consumer) for consumer in health.consumers],
        "vcenters": [_vcenter(vcenter) for vcenter in health.vcenters],
        "held": health.held,
        "waiting": health.waiting,
        "capacity": health.capacity,
        "capacity_reason": health.capacity_reason,
        "event_loop_lag_seconds": round(health.loop_lag_s, 3),
        "event_loop_lag_reason": health.loop_lag_reason,
    }


def _vcenter(vcenter: VCenterHealth) -> dict[str, Any]:
    age_s = vcenter.last_good_poll_age_s
    return {
        "name": vcenter.name,
        "state": vcenter.state,
        "reason": vcenter.reason,
        "last_good_look_age_seconds": None if age_s is None else round(age_s, 1),
        "watches": vcenter.watches,
    }


def _all_ok(checks: Iterable[ResourceHealth]) -> bool:
    checks = tuple(checks)
    return bool(checks) and all(check.ok for check in checks)
