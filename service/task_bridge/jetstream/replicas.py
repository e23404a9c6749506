"""Reports between replicas: how many watches each holds, which vCenters it has, and how many tasks it misses.

They are hints on a core subject. What follows from them (pull less, hand some watches back, give up a vanished task
later) is safe when they are late, lost or wrong: JetStream alone decides which replica owns a watch.

On the same subject a replica asks whether another one has survived a request. A subject of its own would need another
permission in every account.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable
from ..domain.follows.event import FollowReport
from ..domain.ports import TaskSource
from ..domain.task import Api
from ..domain.vcenter_state import VCenterReport, VCenterState, combine_reports
from ..domain.watch import Watch
from ..waits import sleep_to_tick
from ..watcher import Watcher
from .ownership import Ownership
from .reported_vcenters import ReportedVCenters

log = structlog.get_logger(__name__)

_REPORTS_PER_ACK_WAIT = 10
"""Reports within the time that a watch may stay without a heartbeat; there is one each second at least."""
_GONE_AFTER = 5
_SETTLE_S = 5.0
"""How long a replica listens before it believes that it is alone: others may just be restarting with it."""
_UNEVEN_FOR = 3
"""Intervals: after 5 missed reports a replica is gone; 3 uneven reports in a row are no burst."""


_ASK_EVERY_S = 1.0
_QUESTIONS = 10
"""How often a replica asks whether others survived a request: one may be cut off for a while, or busy."""


class ReplicaStatus(msgspec.Struct):
    """One replica: the watches it holds, `capacity` at most; the tasks it misses by vCenter; `leaving`: it stops.

    `absent_by_api`: the tasks it misses by vCenter and API. `vcenters`: those in its settings, and `vcenter_reports`
    their state; `follows`: those that it runs. Releases up to 1.0 report none of them, and read `absent`.
    """

    instance: str
    held: int
    capacity: int
    absent: dict[str, int] = {}
    leaving: bool = False
    vcenters: list[str] = []
    follows: list[FollowReport] = []
    absent_by_api: dict[str, dict[Api, int]] = {}
    vcenter_reports: dict[str, VCenterReport] = {}


class SurvivalNote(msgspec.Struct):
    """A question whether a replica has survived this request, or the answer that it has (`survived`)."""

    request: str
    survived: bool = False


class _Report(NamedTuple):
    status: ReplicaStatus
    received_at: float


_decoder = msgspec.json.Decoder(ReplicaStatus)
_note_decoder = msgspec.json.Decoder(SurvivalNote)


class Replicas:
    """The replicas that work on the same streams. `run` sends and receives reports without end."""

    def __init__(
        self,
        connection: Client,
        subject: str,
        own: ReplicaStatus,
        ownership: Ownership[Watch],
        watcher: Watcher,
        sources: Mapping[str, TaskSource],
        *,
        own_follows: Callable[[], list[FollowReport]],
        own_state: Callable[[str], VCenterReport | None],
        ack_wait_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own_follows = own_follows
        self._own_state = own_state
        self._connection = connection
        self._subject = subject
        self._own = own
        self._ownership = ownership
        self._watcher = watcher
        self._sources = sources
        self._ack_wait_s = ack_wait_s
        self._clock = clock
        self._others: dict[str, _Report] = {}
        self._uneven_count = 0
        self._reported = ReportedVCenters(_SETTLE_S, clock())
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._have_survived: list[Callable[[str], bool]] = []
        self._on_vcenter: list[Callable[[str], Awaitable[None]]] = []
        ownership.belongs_elsewhere = self.belongs_elsewhere

    def add_requests(self, has_survived: Callable[[str], bool], on_vcenter: Callable[[str], Awaitable[None]]) -> None:
        """Answer for the requests that this replica has survived, and report each vCenter that others begin to have."""
        self._have_survived.append(has_survived)
        self._on_vcenter.append(on_vcenter)

    async def run(self) -> None:
        subscription = await self._connection.subscribe(self._subject, cb=self._on_report)
        try:
            while True:
                await self._publish_own_status()
                interval_s = min(1.0, self._ack_wait_s() / _REPORTS_PER_ACK_WAIT)
                await sleep_to_tick(interval_s)
                self._reported.check_listening(self._clock(), is_connected=self._connection.is_connected)
                gone_before = self._clock() - _GONE_AFTER * interval_s
                self._others = {name: one for name, one in self._others.items() if one.received_at >= gone_before}
                self._pass_on_absent_counts()
                await self._hand_back_unconfigured()
                await self._hand_back_surplus()
        finally:
            if not self._connection.is_closed:
                await subscription.unsubscribe()

    def held_count(self) -> int:
        """Return how many watches all replicas hold, by the last report of each."""
        return self._ownership.held_count + sum(other.status.held for other in self._others.values())

    def hand_back_s(self, vcenter: str, waited_s: float) -> float:
        """Return for how long to hand back a request for a vCenter that isn't configured here, 0 to reject it."""
        return self._reported.hand_back_s(vcenter, waited_s, self._clock())

    def list_reported_vcenters(self) -> list[str]:
        """Return the vCenters that other replicas report."""
        return self._reported.names(self._clock())

    def list_follows(self) -> dict[tuple[str, str], FollowReport]:
        """Return the follows that replicas run, by vCenter and name."""
        reports = [report for other in self._others.values() for report in other.status.follows]
        return {report.key: report for report in [*reports, *self._own_follows()]}

    def held_follow_count(self) -> int:
        """Return how many follows all replicas run, by the last report of each."""
        return len(self.list_follows())

    def vcenter_state(self, vcenter: str) -> VCenterState:
        """Return the state of a vCenter as the replicas that poll it see it."""
        reports = [other.status.vcenter_reports.get(vcenter) for other in self._others.values()]
        return combine_reports(vcenter, filter(None, (self._own_state(vcenter), *reports)))

    async def was_survived(self, request: str) -> bool:
        """Ask the other replicas whether one has survived this request. Raises NatsUnavailable."""
        answer = self._asked.setdefault(request, asyncio.get_running_loop().create_future())
        try:
            for _ in range(_QUESTIONS):
                await self._publish(SurvivalNote(request))
                done, _ = await asyncio.wait((answer,), timeout=_ASK_EVERY_S)
                if done:
                    return True
        except nats.errors.Error as error:
            raise NatsUnavailable(f"can't ask other replicas: {error or type(error).__name__}") from error
        finally:
            self._asked.pop(request, None)
        return False

    async def announce_leaving(self) -> None:
        """Let the others take over now; they needn't wait until the reports of this replica stop."""
        self._own.leaving = True
        await self._publish_own_status()

    async def _publish_own_status(self) -> None:
        own = self._own
        own.held = self._ownership.held_count
        own.follows = self._own_follows()
        own.vcenter_reports = {name: state for name in self._sources if (state := self._own_state(name))}
        counts = {name: source.absent_counts for name, source in self._sources.items()}
        own.absent_by_api = {name: by_api for name, by_api in counts.items() if any(by_api.values())}
        own.absent = {name: sum(by_api.values()) for name, by_api in own.absent_by_api.items()}
        if self._connection.is_connected:
            try:
                await self._publish(own)
            except nats.errors.Error as error:
                log.debug("neighbours_not_told", reason=str(error))

    async def _publish(self, message: ReplicaStatus | SurvivalNote) -> None:
        await self._connection.publish(self._subject, msgspec.json.encode(message))

    async def _on_report(self, message: Msg) -> None:
        try:
            status = _decoder.decode(message.data)
        except (msgspec.DecodeError, msgspec.ValidationError):
            await self._on_note(message)
            return
        if status.leaving:
            self._others.pop(status.instance, None)
        elif status.instance != self._own.instance:
            is_new = status.instance not in self._others
            self._others[status.instance] = _Report(status, self._clock())
            if is_new:
                await self._publish_own_status()  # until then it doesn't know what this one knows
            for vcenter in self._reported.record(status.vcenters, self._clock()):
                for on_vcenter in self._on_vcenter:
                    await on_vcenter(vcenter)

    async def _on_note(self, message: Msg) -> None:
        try:
            note = _note_decoder.decode(message.data)
        except (msgspec.DecodeError, msgspec.ValidationError):
            return  # another release's report
        if note.survived:
            if (answer := self._asked.get(note.request)) is not None and not answer.done():
                answer.set_result(None)
        elif any(has_survived(note.request) for has_survived in self._have_survived):
            with contextlib.suppress(nats.errors.Error):
                await self._publish(SurvivalNote(note.request, survived=True))

    def _pass_on_absent_counts(self) -> None:
        others = [other.status for other in self._others.values()]
        for name, source in self._sources.items():
            source.set_absent_elsewhere(count_absent(name, others))

    def belongs_elsewhere(self, vcenter: str) -> bool:
        """Return whether only other replicas can poll this vCenter's tasks, and one of them has capacity."""
        return vcenter not in self._sources and self._free_elsewhere(vcenter) > 0

    def is_known_elsewhere(self, vcenter: str) -> bool:
        """Return whether only other replicas can find this vCenter's tasks."""
        return vcenter not in self._sources and vcenter in self._reported.names(self._clock())

    def _free_elsewhere(self, vcenter: str) -> int:
        having = (other.status for other in self._others.values() if vcenter in other.status.vcenters)
        return sum(max(0, status.capacity - status.held) for status in having)

    async def _hand_back_unconfigured(self) -> None:
        """Hand the watches that this replica can't poll to those that can, as many as they have capacity for."""
        unconfigured = {vcenter for vcenter, _ in self._watcher.held_by_status()} - self._sources.keys()
        for vcenter in unconfigured:
            if free := self._free_elsewhere(vcenter):
                await self._ownership.hand_back(self._watcher.release_unconfigured(vcenter, free))

    async def _hand_back_surplus(self) -> None:
        """Compare the last reports, not the current state: watches of a burst are still being handed out."""
        others = [(other.status.held, other.status.capacity) for other in self._others.values()]
        surplus = count_surplus(self._own.held, others)
        self._uneven_count = self._uneven_count + 1 if surplus else 0
        if (not surplus or self._uneven_count >= _UNEVEN_FOR) and await self._ownership.hand_back_surplus(
            surplus, self._watcher.release
        ):
            self._uneven_count = 0  # wait for the effect first


def count_absent(vcenter: str, others: Iterable[ReplicaStatus]) -> Counter[Api]:
    """Return how many tasks the `others` miss, by API. Those of an older release may be of either. Pure."""
    counts: Counter[Api] = Counter()
    for status in others:
        unknown = status.absent.get(vcenter, 0)
        counts.update(status.absent_by_api.get(vcenter, {"cis": unknown, "vim": unknown}))
    return counts


def count_surplus(held: int, others: Iterable[tuple[int, int]]) -> int:
    """Return how many watches of `held` the `others`, (held, capacity) each, should get. Pure.

    That is what exceeds the mean by more than a tenth, and at most what the others can take up to the mean.
    """
    others = list(others)
    mean = math.ceil((held + sum(other for other, _ in others)) / (len(others) + 1))
    free = sum(max(0, min(capacity, mean) - other) for other, capacity in others)
    return max(0, min(held - mean - max(1, mean // 10), free))
