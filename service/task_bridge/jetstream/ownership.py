"""The watches and the follows that this replica owns: held messages of a work-queue stream.

A replica owns a watch while it holds the watch's message unacknowledged and sends `in_progress` before `ack_wait`
passes. If the replica dies, JetStream delivers the message to another one. An ack never proves ownership (the fence
of the events does), and a replica that lost a watch must not nak its message. The same is true of follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable, VCenterUnavailable
from ..domain.ports import WatchHandle
from ..domain.subjects import CONSUMER
from ..logs import FailureLog
from ..metrics import Metrics
from ..waits import sleep_to_tick
from .nats_py_workarounds import send_commands
from .pull_consumer import PullConsumer
from .streams import ACK, IN_PROGRESS, NAK, TERM, StoredMessage, Streams, nak_later, send_ack

_HEARTBEATS_PER_ACK_WAIT = 3
_RECHECK_S = 0.5
"""Time in which a changed `ack_wait` is noticed."""
_CHUNK = 500
_MIN_HANDED_BACK = 50
_MAX_REQUESTED = 5_000
_PASSED_ON_S = 0.2
"""Until JetStream delivers a watch again that another replica can poll; by chance it may be this one again."""

Key = tuple[str, str]
"""(vCenter, task), or (vCenter, name of a follow)."""


class HeldOrder(Protocol):
    """What a held message contains: a watch or a follow."""

    @property
    def key(self) -> Key: ...
    @property
    def log_keys(self) -> dict[str, str]: ...


OrderT = TypeVar("OrderT", bound=HeldOrder)


class HeldStream(NamedTuple, Generic[OrderT]):
    """A stream of orders. `decode` raises msgspec's errors; `subject_of` returns the subject of an order by its key."""

    name: str
    decode: Callable[[bytes], OrderT]
    subject_of: Callable[[str, str], str]


class HeldMessage:
    """One held message. `reply` is JetStream's ack subject of its newest delivery."""

    __slots__ = ("_ownership", "key", "reply")

    def __init__(self, ownership: Ownership[Any], key: Key, reply: str) -> None:
        self._ownership = ownership
        self.key = key
        self.reply = reply

    @property
    def is_redelivered(self) -> bool:
        """Return whether JetStream has delivered the message before."""
        return parse_ack_subject(self.reply).delivered > 1

    async def ack(self) -> None:
        """Delete the message, since the final event is stored. After a lost ack it is delivered again."""
        await self._ownership.ack(self)

    async def is_current(self) -> bool:
        """Return whether the message is still in the stream. Raises NatsUnavailable."""
        return await self._ownership.is_current(self)

    def drop(self) -> None:
        """Stop holding the message, without an answer to JetStream: another replica wrote, or the watch is gone."""
        self._ownership.drop(self)


_HELD_MESSAGE_IS_A_HANDLE: type[WatchHandle] = HeldMessage


class Ownership(Generic[OrderT]):
    """Pulls orders up to `capacity`, keeps them in progress, and hands all back when the replica stops.

    `ack_wait_s` returns that of the server's consumer, which an operator may change at any time. `take_over` gets
    each delivered order and returns the outcome of its request, None if it was over. `report_outcome` gets the outcomes
    of those that were delivered for the first time. `quarantine` gets each message that can't be read and the reason,
    and returns whether the message may be deleted.
    `belongs_elsewhere(vcenter)`: only other replicas can poll it.
    """

    def __init__(
        self,
        streams: Streams,
        held_stream: HeldStream[OrderT],
        metrics: Metrics,
        *,
        capacity: int,
        ack_wait_s: Callable[[], float],
        take_over: Callable[[OrderT, HeldMessage], Awaitable[str | None]],
        report_outcome: Callable[[OrderT, str], None],
        quarantine: Callable[[StoredMessage, str], Awaitable[bool]],
        failures: FailureLog,
    ) -> None:
        self._streams = streams
        self._held_stream = held_stream
        self._metrics = metrics
        self._capacity = capacity
        self._ack_wait_s = ack_wait_s
        self._take_over = take_over
        self._report_outcome = report_outcome
        self._quarantine = quarantine
        self._surplus = 0
        self.belongs_elsewhere: Callable[[str], bool] = lambda _: False
        self._failures = failures
        self._handles: dict[Key, HeldMessage] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        inbox = streams.connection.new_inbox()
        self.pull = PullConsumer(streams, held_stream.name, CONSUMER, inbox, self._free_capacity)

    def _free_capacity(self) -> int:
        return 0 if self._surplus else min(_MAX_REQUESTED, self._capacity - len(self._handles))

    @property
    def held_count(self) -> int:
        return len(self._handles)

    async def run(self) -> None:
        """Take and hold messages, without end. Heartbeats start before the first message can come."""
        subscription = await self._streams.connection.subscribe(self.pull.inbox, cb=self._on_message)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_heartbeats())
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
            order = self._held_stream.decode(message.data)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            self._start(self._quarantine_message(message, str(error)))
            return
        key = order.key
        was_held = key in self._handles
        if not was_held and self.belongs_elsewhere(key[0]):
            await send_ack(self._streams.connection, message.reply, nak_later(_PASSED_ON_S))
            return
        handle = HeldMessage(self, key, message.reply)
        is_takeover = handle.is_redelivered and not was_held  # raises ValueError if JetStream didn't deliver it
        self._handles[key] = handle
        if is_takeover:
            self._metrics.takeovers.inc()
        self._start(self._take_order_over(order, handle))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_order_over(self, order: OrderT, handle: HeldMessage) -> None:
        try:
            outcome = await self._take_over(order, handle)
        except (NatsUnavailable, VCenterUnavailable) as error:
            # Without heartbeats JetStream delivers the message again.
            self._failures.report_failure(**order.log_keys, reason=str(error))
            handle.drop()
            return
        self._failures.report_recovery()
        if outcome is not None and not handle.is_redelivered:
            self._report_outcome(order, outcome)

    async def _quarantine_message(self, message: Msg, reason: str) -> None:
        metadata = message.metadata
        stored_at, sequence = metadata.timestamp.timestamp(), metadata.sequence.stream
        stored = StoredMessage(message.subject, sequence, stored_at, message.headers or {}, message.data)
        if await self._quarantine(stored, reason):
            await send_ack(self._streams.connection, message.reply, TERM)

    async def _send_heartbeats(self) -> None:
        """Tell JetStream three times per `ack_wait` that each held message is in progress."""
        clock = asyncio.get_running_loop().time
        while True:
            due = await self._sleep_until_heartbeat(clock)
            held = list(self._handles.values())
            for start in range(0, len(held), _CHUNK):
                if not self._streams.connection.is_connected:
                    break  # nats-py would buffer them
                replies = [handle.reply for handle in held[start : start + _CHUNK]]
                await send_commands(self._streams.connection, [_encode_heartbeats(replies)])
                await asyncio.sleep(0)
            self._metrics.heartbeat_lag.set(clock() - due)

    async def _sleep_until_heartbeat(self, clock: Callable[[], float]) -> float:
        """Sleep until the next heartbeats are due, and return when that was: at once if `ack_wait` changes."""
        ack_wait_s = self._ack_wait_s()
        due = clock() + ack_wait_s / _HEARTBEATS_PER_ACK_WAIT
        while (wait_s := due - clock()) > 0:
            await sleep_to_tick(min(wait_s, _RECHECK_S))
            if self._ack_wait_s() != ack_wait_s:
                return clock()
        return due

    async def ack(self, handle: HeldMessage) -> None:
        self.drop(handle)
        await send_ack(self._streams.connection, handle.reply, ACK)

    async def is_current(self, handle: HeldMessage) -> bool:
        subject = self._held_stream.subject_of(*handle.key)
        stored = await self._streams.read_last(self._held_stream.name, subject, leader=True)
        return stored is not None and stored.sequence == parse_ack_subject(handle.reply).sequence

    def drop(self, handle: HeldMessage) -> None:
        if self._handles.get(handle.key) is handle:
            del self._handles[handle.key]
            self.pull.request_more()

    async def hand_back_surplus(self, surplus: int, release: Callable[[int], Iterable[Key]]) -> bool:
        """Hand back a quarter of the `surplus` (at least 50), and pull no watches while there is a surplus.

        `release(count)` chooses the watches. Returns False if nothing was handed back yet, because there is no
        surplus or the last pull is still open and may bring more.
        """
        if self._surplus and not surplus:
            self.pull.request_more()
        self._surplus = surplus
        if not surplus or self.pull.is_open:
            return False
        await self.hand_back(release(min(surplus, max(_MIN_HANDED_BACK, surplus // 4))))
        return True

    async def hand_back(self, keys: Iterable[Key]) -> None:
        """Nak the watches, so that other replicas get them at once. The caller must not publish about them any more."""
        for key in list(keys):
            if (handle := self._handles.pop(key, None)) is not None:
                await send_ack(self._streams.connection, handle.reply, NAK)

    async def hand_all_back(self) -> None:
        """Nak all watches when the replica stops. The pull must have been stopped before."""
        await self.hand_back(self._handles)


def _encode_heartbeats(replies: list[str]) -> bytes:
    """Return NATS's commands that publish a heartbeat to each reply. Encoding them together is cheaper."""
    ending = f" {len(IN_PROGRESS)}\r\n{IN_PROGRESS.decode()}\r\n"
    return "".join([f"PUB {reply}{ending}" for reply in replies]).encode("utf-8", "surrogateescape")


class AckSubject(NamedTuple):
    """A delivery as JetStream's ack subject names it: how often delivered, the message's sequence and time (ns)."""

    delivered: int
    sequence: int
    stored_ns: int


def parse_ack_subject(reply: str) -> AckSubject:
    # …<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
    delivered, sequence, _, stored_ns, _ = reply.split(".")[-5:]
    return AckSubject(int(delivered), int(sequence), int(stored_ns))
