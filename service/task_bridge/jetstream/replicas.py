"""Reports between replicas: how many watches each holds, and how many tasks each misses.

They are hints on a core subject. What follows from them (pull less, hand some watches back, give up a vanished task
later) is safe when they are late, lost or wrong: JetStream alone decides which replica owns a watch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..domain.ports import TaskSource
from ..watcher import Watcher
from .ownership import Ownership

log = structlog.get_logger(__name__)

_REPORTS_PER_ACK_WAIT = 10
"""Reports within the time that a watch may stay without a heartbeat; there is one each second at least."""
_GONE_AFTER = 5
_UNEVEN_FOR = 3
"""Intervals: after 5 missed reports a replica is gone; 3 uneven reports in a row are no burst."""


class ReplicaStatus(msgspec.Struct):
    """One replica: the watches it holds, `capacity` at most; the tasks it misses by vCenter; `leaving`: it stops."""

    instance: str
    held: int
    capacity: int
    absent: dict[str, int] = {}
    leaving: bool = False


class _Report(NamedTuple):
    status: ReplicaStatus
    received_at: float


_decoder = msgspec.json.Decoder(ReplicaStatus)


class Replicas:
    """The replicas that work on the same streams. `run` sends and receives reports without end."""

    def __init__(
        self,
        connection: Client,
        subject: str,
        own: ReplicaStatus,
        ownership: Ownership,
        watcher: Watcher,
        sources: Mapping[str, TaskSource],
        *,
        ack_wait_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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

    async def run(self) -> None:
        subscription = await self._connection.subscribe(self._subject, cb=self._on_report)
        try:
            while True:
                await self._publish_own_status()
                interval_s = min(1.0, self._ack_wait_s() / _REPORTS_PER_ACK_WAIT)
                await asyncio.sleep(interval_s)
                gone_before = self._clock() - _GONE_AFTER * interval_s
                self._others = {name: one for name, one in self._others.items() if one.received_at >= gone_before}
                self._pass_on_absent_counts()
                await self._hand_back_surplus()
        finally:
            if not self._connection.is_closed:
                await subscription.unsubscribe()

    def held_count(self) -> int:
        """Return how many watches all replicas hold, by the last report of each."""
        return self._ownership.held_count + sum(other.status.held for other in self._others.values())

    async def announce_leaving(self) -> None:
        """Let the others take over now; they needn't wait until the reports of this replica stop."""
        self._own.leaving = True
        await self._publish_own_status()

    async def _publish_own_status(self) -> None:
        own = self._own
        own.held = self._ownership.held_count
        own.absent = {name: source.absent_count for name, source in self._sources.items() if source.absent_count}
        if self._connection.is_connected:
            try:
                await self._connection.publish(self._subject, msgspec.json.encode(own))
            except nats.errors.Error as error:
                log.debug("neighbours_not_told", reason=str(error))

    async def _on_report(self, message: Msg) -> None:
        try:
            status = _decoder.decode(message.data)
        except (msgspec.DecodeError, msgspec.ValidationError):
            return  # another release's report
        if status.leaving:
            self._others.pop(status.instance, None)
        elif status.instance != self._own.instance:
            self._others[status.instance] = _Report(status, self._clock())

    def _pass_on_absent_counts(self) -> None:
        absent: Counter[str] = Counter()
        for other in self._others.values():
            absent.update(other.status.absent)
        for name, source in self._sources.items():
            source.set_absent_elsewhere(absent[name])

    async def _hand_back_surplus(self) -> None:
        """Compare the last reports, not the current state: watches of a burst are still being handed out."""
        others = [(other.status.held, other.status.capacity) for other in self._others.values()]
        surplus = count_surplus(self._own.held, others)
        self._uneven_count = self._uneven_count + 1 if surplus else 0
        if (not surplus or self._uneven_count >= _UNEVEN_FOR) and await self._ownership.hand_back_surplus(
            surplus, self._watcher.release
        ):
            self._uneven_count = 0  # wait for the effect first


def count_surplus(held: int, others: Iterable[tuple[int, int]]) -> int:
    """Return how many watches of `held` the `others`, (held, capacity) each, should get. Pure.

    That is what exceeds the mean by more than a tenth, and at most what the others can take up to the mean.
    """
    others = list(others)
    mean = math.ceil((held + sum(other for other, _ in others)) / (len(others) + 1))
    free = sum(max(0, min(capacity, mean) - other) for other, capacity in others)
    return max(0, min(held - mean - max(1, mean // 10), free))
