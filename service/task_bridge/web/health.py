"""The bridge's health as the pages show it, and the rules of readiness. Pure."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry

from .. import __version__
from ..domain.board import WatchBoard
from ..domain.clock import describe_difference
from ..domain.follows.event import FollowReport

Readiness = Literal["ok", "degraded", "unready"]

LAG_LIMIT_S = 0.5
"""Lag above which the pages show a reason. The alert uses the same limit."""


@dataclass(frozen=True, slots=True)
class NatsHealth:
    """The connection to NATS. `reason` says why the bridge can't work with it, connected or not."""

    connected: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JetStreamHealth:
    """JetStream: ok if it answers, else `reason` says why not. A stream that is bad says so itself."""

    ok: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ResourceHealth:
    """A stream or a consumer: ok if the bridge can work with it. `reason` says why not, or what else is wrong."""

    name: str
    ok: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class VCenterApiHealth:
    """One API of a vCenter: `cis`, or `vim` for classic tasks. `is_in_use`: the vCenter's state depends on it.

    `held_back`: tasks that this replica misses and doesn't give up yet, because several vanished together.
    """

    api: str
    state: Literal["ok", "degraded", "unknown"]
    reason: str | None = None
    last_good_poll_age_s: float | None = None
    watches: int = 0
    held_back: int = 0
    is_in_use: bool = True


@dataclass(frozen=True, slots=True)
class VCenterHealth:
    """A vCenter as this replica sees it. `watches` is how many of its watches the replica holds.

    `degraded`: from a failed poll or login until a successful one. `unknown`: not polled yet. `unconfigured`: it has
    watches, but no settings. State and age are the worst of the APIs in use.
    """

    name: str
    state: Literal["ok", "degraded", "unknown", "unconfigured"]
    reason: str | None = None
    last_good_poll_age_s: float | None = None
    watches: int = 0
    apis: tuple[VCenterApiHealth, ...] = ()


@dataclass(frozen=True, slots=True)
class BridgeHealth:
    """The health of one replica and of everything it needs.

    The replica holds `held` of at most `capacity` watches. `waiting` watches are stored and held by no replica (None
    if unknown). Streams and consumers are listed once they have been checked; none at all means unready. `follows`
    are those of all replicas, and `own_follows` the keys of those that this replica runs; `unheld_follows` are stored
    and run by no replica. `instance` is the id that this replica writes into its events. `clock_difference_s`: this
    host's clock minus nats-server's.
    """

    nats: NatsHealth
    jetstream: JetStreamHealth = JetStreamHealth(ok=False, reason="not checked yet")
    streams: tuple[ResourceHealth, ...] = ()
    consumers: tuple[ResourceHealth, ...] = ()
    vcenters: tuple[VCenterHealth, ...] = ()
    follows: tuple[FollowReport, ...] = ()
    own_follows: frozenset[tuple[str, str]] = frozenset()
    unheld_follows: int = 0
    held: int = 0
    waiting: int | None = None
    capacity: int = 0
    loop_lag_s: float = 0.0
    clock_difference_s: float | None = None
    stopping: bool = False
    instance: str = ""

    @property
    def status(self) -> Readiness:
        """`unready` only if the service can't work; an unreachable vCenter or a late follow makes it `degraded`."""
        nats_ok = self.nats.connected and self.nats.reason is None
        if self.stopping or not nats_ok or not _all_ok(self.streams) or not _all_ok(self.consumers):
            return "unready"
        is_late = any(follow.is_late and follow.key in self.own_follows for follow in self.follows)
        return "degraded" if is_late or any(vcenter.state == "degraded" for vcenter in self.vcenters) else "ok"

    @property
    def capacity_reason(self) -> str | None:
        """The reason why this replica accepts no new watches. None while it has capacity."""
        if self.held < self.capacity:
            return None
        return f"held {self.held} of {self.capacity}: new watches wait for another replica, or until one of these ends"

    @property
    def follows_reason(self) -> str | None:
        """The reason why follows that are stored find nothing. None if each is run by a replica."""
        count = self.unheld_follows
        if not count:
            return None
        follows = "1 follow is" if count == 1 else f"{count} follows are"
        return f"{follows} stored and run by no replica: see `task-bridge follows`"

    @property
    def clock_reason(self) -> str | None:
        """The reason why the clock of this host needs attention. None while it is near nats-server's."""
        return describe_difference(self.clock_difference_s)

    @property
    def loop_lag_reason(self) -> str | None:
        """The delay of the event loop with its likely causes. None while it is on time."""
        if self.loop_lag_s <= LAG_LIMIT_S:
            return None
        return f"up to {self.loop_lag_s:.1f} s late within the last minute: too little CPU, or too many watches"


class WebState(Protocol):
    """The source of health, metrics and the AsyncAPI document. No method waits; they return what is known."""

    def health(self) -> BridgeHealth: ...

    def server_time(self) -> float:
        """Return Unix seconds by the clock that the times of watches and events go by."""
        ...

    def metrics(self) -> CollectorRegistry:
        """Return the metrics. Called at each scrape, so that gauges like ages are set to current values."""
        ...

    def asyncapi(self) -> bytes:
        """Return the AsyncAPI document as JSON."""
        ...


class BoardSource(Protocol):
    """The source of the watches of all replicas. It reads them only while somebody views the board."""

    @property
    def board(self) -> WatchBoard | None:
        """The board. None until it has been read."""
        ...

    @property
    def trouble(self) -> str | None:
        """The reason why the board isn't up to date. None if it is."""
        ...

    def keep_current(self) -> AbstractContextManager[None]:
        """Keep the board up to date while the context is entered."""
        ...


def build_readiness(health: BridgeHealth) -> dict[str, Any]:
    """Build the body of `/readyz`."""
    return {
        "status": health.status,
        "version": __version__,
        "stopping": health.stopping,
        "nats": asdict(health.nats),
        "jetstream": asdict(health.jetstream),
        "streams": [asdict(stream) for stream in health.streams],
        "consumers": [asdict(consumer) for consumer in health.consumers],
        "vcenters": [
            {
                "name": vcenter.name,
                "state": vcenter.state,
                "reason": vcenter.reason,
                "last_good_look_age_seconds": _round_age(vcenter.last_good_poll_age_s),
                "watches": vcenter.watches,
                "apis": {api.api: _build_api(api) for api in vcenter.apis},
            }
            for vcenter in health.vcenters
        ],
        "follows": [_build_follow(follow, health) for follow in health.follows],
        "follows_reason": health.follows_reason,
        "held": health.held,
        "waiting": health.waiting,
        "capacity": health.capacity,
        "capacity_reason": health.capacity_reason,
        "clock_difference_seconds": None if (ahead := health.clock_difference_s) is None else round(ahead, 3),
        "clock_reason": health.clock_reason,
        "event_loop_lag_seconds": round(health.loop_lag_s, 3),
        "event_loop_lag_reason": health.loop_lag_reason,
    }


def _build_api(api: VCenterApiHealth) -> dict[str, Any]:
    return {
        "state": api.state,
        "reason": api.reason,
        "last_good_look_age_seconds": _round_age(api.last_good_poll_age_s),
        "watches": api.watches,
        "held_back": api.held_back,
        "in_use": api.is_in_use,
    }


def _build_follow(follow: FollowReport, health: BridgeHealth) -> dict[str, Any]:
    return {
        "vcenter": follow.vcenter,
        "name": follow.name,
        "state": follow.state,
        "reason": follow.note,
        "here": follow.key in health.own_follows,
        "since": follow.since,
        "last_task_at": follow.last_task_at,
        "last_read_age_seconds": _round_age(follow.read_age_s),
        "started_watches": follow.started_watches,
        "gaps": follow.gaps,
    }


def _round_age(age_s: float | None) -> float | None:
    return None if age_s is None else round(age_s, 1)


def _all_ok(resources: tuple[ResourceHealth, ...]) -> bool:
    return bool(resources) and all(resource.ok for resource in resources)
