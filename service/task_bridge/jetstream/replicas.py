"""What replicas tell each other: how many watches each holds, and how many tasks each misses.

Hints on a core subject. What follows from them (pull less, hand some watches back, give a vanished task up later)
is safe when they are late, lost or wrong: who owns what is decided by JetStream alone.
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

_A_WAIT = 10
"""Told so often while a watch may stay without a heartbeat, a second apart at most."""
_GONE_AFTER = 5
_UNEVEN_FOR = 3
"""Tellings: so many missed and a replica counts as gone; so many unlevel in a row and it's no burst."""


class ReplicaStatus(msgspec.Struct):
    """One replica: the watches it holds of at most `capacity`, tasks it misses by vCenter; `leaving`: it stops."""

    instance: str
    held: int
    capacity: int
    absent: dict[str, int] = {}
    leaving: bool = False


class _Heard(NamedTuple):
    word: ReplicaStatus
    at: float


_decoder = msgspec.json.Decoder(ReplicaStatus)


class Replicas:
    """The replicas that work on the same streams. `run` tells and listens without end."""

    def __init__(
        self,
        connection: Client,
        subject: str,
        own: ReplicaStatus,
        ownership: Ownership,
        watcher: Watcher,
        sources: Mapping[str, TaskSource],
        *,
        ack_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._own = own
        self._ownership = ownership
        self._watcher = watcher
        self._sources = sources
        self._every_s = min(1.0, ack_wait_s / _A_WAIT)
        self._clock = clock
        self._heard: dict[str, _Heard] = {}
        self._uneven = 0

    async def run(self) -> None:
        subscription = await self._connection.subscribe(self._subject, cb=self._on_word)
        try:
            while True:
                await self._tell()
                await asyncio.sleep(self._every_s)
                self._forget_gone()
                self._tell_absent()
                await self._level()
        finally:
            if not self._connection.is_closed:
                await subscription.unsubscribe()

    def held_count(self) -> int:
        """How many watches all replicas hold, by what each told last."""
        return self._ownership.held_count + sum(heard.word.held for heard in self._heard.values())

    async def announce_leaving(self) -> None:
        """The others take over now; they needn't wait until this replica isn't heard any more."""
        self._own.leaving = True
        await self._tell()

    async def _tell(self) -> None:
        own = self._own
        own.held = self._ownership.held_count
        own.absent = {name: source.absent_count for name, source in self._sources.items() if source.absent_count}
        if self._connection.is_connected:
            try:
                await self._connection.publish(self._subject, msgspec.json.encode(own))
            except nats.errors.Error as error:
                log.debug("neighbours_not_told", reason=str(error))

    async def _on_word(self, message: Msg) -> None:
        try:
            word = _decoder.decode(message.data)
        except (msgspec.DecodeError, msgspec.ValidationError):
            return  # another release's; it does without
        if word.leaving:
            self._heard.pop(word.instance, None)
        elif word.instance != self._own.instance:
            self._heard[word.instance] = _Heard(word, self._clock())

    def _forget_gone(self) -> None:
        since = self._clock() - _GONE_AFTER * self._every_s
        self._heard = {name: heard for name, heard in self._heard.items() if heard.at >= since}

    def _tell_absent(self) -> None:
        absent: Counter[str] = Counter()
        for heard in self._heard.values():
            absent.update(heard.word.absent)
        for name, source in self._sources.items():
            source.set_absent_elsewhere(absent[name])

    async def _level(self) -> None:
        """Compares what all told last, not what is now: a burst that is being handed out is no unevenness."""
        others = [(heard.word.held, heard.word.capacity) for heard in self._heard.values()]
        more = count_surplus(self._own.held, others)
        self._uneven = self._uneven + 1 if more else 0
        if (not more or self._uneven >= _UNEVEN_FOR) and await self._ownership.hand_back_surplus(
            more, self._watcher.release
        ):
            self._uneven = 0  # and see first what became of it


def count_surplus(held: int, others: Iterable[tuple[int, int]]) -> int:
    """How many watches of `held` the `others`, (held, capacity) each, should have: more than a tenth above the
    mean, and no more than they have room for up to it. Pure.
    """
    others = list(others)
    mean = math.ceil((held + sum(other for other, _ in others)) / (len(others) + 1))
    room = sum(max(0, min(capacity, mean) - other) for other, capacity in others)
    return max(0, min(held - mean - max(1, mean // 10), room))
