"""The watches this replica owns: held messages of the stream of watches.

Holding a message un-acked and saying so (`in_progress`) before `ack_wait` passes is the whole lease: who dies stops
saying so, and JetStream hands the message to another. An ack is never the fence; an ex-owner must not nak.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec
import structlog
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable, VCenterUnavailable
from ..domain.subjects import CONSUMER, SubjectNames
from ..domain.watch import Watch
from ..logs import FailureLog
from ..metrics import Metrics
from .pull_consumer import PullConsumer
from .streams import ACK, IN_PROGRESS, NAK, TERM, StoredMessage, Streams, send_ack

log = structlog.get_logger(__name__)

_CHUNK = 500
_SHARED_AT_ONCE = 50
_MAX_ASKED = 5_000
_decoder = msgspec.json.Decoder(Watch)

Key = tuple[str, str]
"""(vCenter, task)."""


class HeldMessage:
    """One held watch message. `reply` is JetStream's ack subject of its newest delivery."""

    __slots__ = ("_owner", "key", "reply")

    def __init__(self, owner: Ownership, key: Key, reply: str) -> None:
        self._owner = owner
        self.key = key
        self.reply = reply

    async def ack(self) -> None:
        """The watch is over and its final event stored: its message goes. A lost ack is repeated by redelivery."""
        await self._owner.acked(self)

    async def is_current(self) -> bool:
        """Whether the message lies in the stream still. Raises NatsUnavailable."""
        return await self._owner.is_current(self)

    def drop(self) -> None:
        """Holds it no longer and says nothing: another owner wrote, or the watch is gone."""
        self._owner.dropped(self)


class Ownership:
    """Pulls watches up to `capacity`, says that they are in progress, and hands all back on the way out."""

    def __init__(
        self,
        streams: Streams,
        names: SubjectNames,
        metrics: Metrics,
        *,
        capacity: int,
        ack_wait_s: float,
        take: Callable[[Watch, HeldMessage], Awaitable[str | None]],
        put_aside: Callable[[StoredMessage], Awaitable[None]],
    ) -> None:
        self._streams = streams
        self._names = names
        self._capacity = capacity
        self._beat_s = ack_wait_s / 3
        self._take = take
        self._put_aside = put_aside
        self._surplus = 0
        self._metrics = metrics
        self._trouble = FailureLog(log, "watches_not_taken_up", "watches_taken_up_again")
        self._handles: dict[Key, HeldMessage] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        inbox = streams.connection.new_inbox()
        self.pull = PullConsumer(streams, names.watches_stream, CONSUMER, inbox, self._room)

    def _room(self) -> int:
        return 0 if self._surplus else min(_MAX_ASKED, self._capacity - len(self._handles))

    @property
    def held_count(self) -> int:
        return len(self._handles)

    async def run(self) -> None:
        """Takes and holds watches, without end. The heartbeat runs before the first message can come."""
        subscription = await self._streams.connection.subscribe(self.pull.inbox, cb=self._on_message)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat())
                group.create_task(self.pull.run())
        finally:
            if not self._streams.connection.is_closed:
                await subscription.unsubscribe()
            for task in self._tasks:
                task.cancel()

    async def _on_message(self, message: Msg) -> None:
        if self.pull.handle_status(message):
            return
        try:
            watch = _decoder.decode(message.data)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            log.error("watch_unreadable", subject=message.subject, reason=str(error))  # noqa: TRY400 - one line
            self._start(self._unreadable(message))
            return
        key = (watch.vcenter, watch.task)
        held = key in self._handles
        handle = self._handles[key] = HeldMessage(self, key, message.reply)
        first = _told(message.reply).delivered == 1
        if not (first or held):
            self._metrics.takeovers.inc()
        self._start(self._taken(watch, handle, first=first))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unreadable(self, message: Msg) -> None:
        metadata = message.metadata
        stored_at, sequence = metadata.timestamp.timestamp(), metadata.sequence.stream
        try:
            await self._put_aside(
                StoredMessage(message.subject, sequence, stored_at, message.headers or {}, message.data)
            )
        except NatsUnavailable as error:
            log.warning("watch_not_put_aside", subject=message.subject, reason=str(error))  # it is delivered again
            return
        await send_ack(self._streams.connection, message.reply, TERM)

    async def _taken(self, watch: Watch, handle: HeldMessage, *, first: bool) -> None:
        try:
            outcome = await self._take(watch, handle)
        except (NatsUnavailable, VCenterUnavailable) as error:
            # Not said to be in progress any more, so it is delivered again.
            self._trouble.report_failure(vcenter=watch.vcenter, task=watch.task, reason=str(error))
            handle.drop()
            return
        self._trouble.report_recovery()
        if outcome is not None and first and watch.stored_request:
            self._metrics.requests.labels(outcome).inc()
            log.info("request", outcome=outcome, **watch.log_keys)

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + self._beat_s
            await asyncio.sleep(self._beat_s)
            await self._beat_once()
            self._metrics.heartbeat_lag.set(clock() - due)

    async def _beat_once(self) -> None:
        for number, handle in enumerate(list(self._handles.values())):
            if number % _CHUNK == _CHUNK - 1:
                await asyncio.sleep(0)
            if not self._streams.connection.is_connected:
                break  # nats-py would buffer them, and fail past 2 MiB
            await send_ack(self._streams.connection, handle.reply, IN_PROGRESS)

    async def acked(self, handle: HeldMessage) -> None:
        self.dropped(handle)
        await send_ack(self._streams.connection, handle.reply, ACK)

    async def is_current(self, handle: HeldMessage) -> bool:
        stored = await self._streams.last(
            self._names.watches_stream, self._names.watch_subject(*handle.key), leader=True
        )
        return stored is not None and stored.sequence == _told(handle.reply).sequence

    def dropped(self, handle: HeldMessage) -> None:
        if self._handles.get(handle.key) is handle:
            del self._handles[handle.key]
            self.pull.request_more()

    async def hand_back_surplus(self, surplus: int, release: Callable[[int], Iterable[Key]]) -> bool:
        """So many more are held here than should be: takes none for now, and hands some back for others to take.

        True when it did; at first what had been asked for may still come.
        """
        if self._surplus and not surplus:
            self.pull.request_more()
        self._surplus = surplus
        if not surplus or self.pull.is_open:
            return False
        await self.hand_back(release(min(surplus, max(_SHARED_AT_ONCE, surplus // 4))))
        return True

    async def hand_back(self, keys: Iterable[Key]) -> None:
        """Naks what is held, so that others have it at once; nothing may be published of it any more."""
        for key in list(keys):
            if (handle := self._handles.pop(key, None)) is not None:
                await send_ack(self._streams.connection, handle.reply, NAK)

    async def hand_all_back(self) -> None:
        """On the way out. Nothing may be pulled any more."""
        await self.hand_back(self._handles)


class _Told(NamedTuple):
    """What JetStream's ack subject says of a delivery: the how many-th it is, and the message's stream sequence."""

    delivered: int
    sequence: int


def _told(reply: str) -> _Told:
    delivered, sequence = reply.split(".")[-5:-3]  # …<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
    return _Told(int(delivered), int(sequence))
