"""What operators do to the bridge's streams: they purge, cap, delete. What was there is noted first.

Each changes a stream in one step that takes away exactly what was read before: a purge up to a sequence, and a
deletion of what takes no more messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import nats.errors
import nats.js.errors
from msgspec.json import decode
from nats.js.api import StreamInfo

from chaos.account import Stored
from chaos.checker import ENDINGS
from chaos.world import BEGIN_S, World
from task_bridge.domain.subjects import CONSUMER

T = TypeVar("T")
CAPPED_S = (1.0, 3.0)
SURE_S = 45.0


class StreamTroubles:
    """Troubles of one round's streams. They hold `nats`, so that all nats-servers are there meanwhile."""

    def __init__(self, world: World, chance: random.Random, tell: Callable[[str], None], nats: asyncio.Lock) -> None:
        self._world = world
        self._chance = chance
        self._tell = tell
        self._nats = nats

    async def purge_events(self) -> None:
        """All of them, or those of one task."""
        names, archive = self._world.names, self._world.archive
        async with self._nats:
            await archive.read()
            events = [message for message in archive.messages if message.subject.startswith(f"{names.events}.")]
            one = self._chance.choice(events).subject.rsplit(".", 2)[0] if events else ""
            of_task = f"{one}." if self._chance.random() < 0.5 else ""
            unacked = await self._read_unacked()
            there_at, newest = self._begin_loss(), archive.newest
            subject = f"{one}.>" if of_task else None
            await _surely(lambda: self._world.js.purge_stream(names.events_stream, seq=newest + 1, subject=subject))
            archive.remove(lambda message: message.subject.startswith(of_task), there_at)
            await self._note_unacked(unacked)
            self._tell(f"purged {names.events_stream} {subject or ''} up to {newest}")

    async def cap_events(self) -> None:
        """So that it evicts old ones for a while."""
        archive, stream = self._world.archive, self._world.names.events_stream
        async with self._nats:
            await archive.read()
            there_at, most = self._begin_loss(), self._chance.randint(1, 20)
            self._tell(f"cap {stream} at {most} messages")
            await self._cap(stream, most)
            over = time.monotonic() + self._chance.uniform(*CAPPED_S)
            while time.monotonic() < over:
                there_at = await self._note_evicted(there_at)
                await self._note_unacked()
                await asyncio.sleep(0.03)
            await self._cap(stream, -1)
            await self._note_evicted(there_at)
            await self._note_unacked()
            self._tell(f"cap of {stream} removed")

    async def _note_evicted(self, there_at: float) -> float:
        """Note what a cap removed since `there_at`; until when the rest was there."""
        await self._world.archive.read()
        now = time.time()
        first = (await self._info(self._world.names.events_stream)).state.first_seq
        self._world.archive.remove(lambda message: message.sequence < first, there_at)
        return now

    async def delete_events(self) -> None:
        archive, stream = self._world.archive, self._world.names.events_stream
        async with self._nats, _AllBridgesUp(self._world):
            await self._seal(stream)
            await archive.read()
            unacked = await self._read_unacked()
            there_at = self._begin_loss()
            await self._deleted(stream)
            archive.begin_again(there_at)
            await self._note_unacked(unacked)
            self._tell(f"deleted {stream}")

    async def purge_queue(self) -> None:
        stream = self._some_queue()
        async with self._nats:
            await self._info(stream)
            # Up to what was stored last, there or not: a purge up to a message that had gone leaves some that are
            # delivered and found nowhere (nats-server 2.15, measured).
            lost, newest = await _surely(lambda: self._world.read_queue(stream))
            await _surely(lambda: self._world.js.purge_stream(stream, seq=newest + 1))
            self._note_lost(stream, lost)
            self._tell(f"purged {stream} up to {newest}: {len(lost)} messages")

    async def delete_queue(self) -> None:
        stream = self._some_queue()
        async with self._nats, _AllBridgesUp(self._world):
            await self._seal(stream)
            lost, _ = await _surely(lambda: self._world.read_queue(stream))
            await self._deleted(stream)
            self._note_lost(stream, lost)
            self._tell(f"deleted {stream}: {len(lost)} messages")

    async def cap_queue(self) -> None:
        """It is full for a while."""
        stream = self._some_queue()
        async with self._nats:
            most = max(1, (await self._info(stream)).state.messages)
            self._tell(f"cap {stream} at {most} messages")
            await self._cap(stream, most)
            await asyncio.sleep(self._chance.uniform(*CAPPED_S))
            await self._cap(stream, -1)
            self._tell(f"cap of {stream} removed")

    async def delete_consumer(self) -> None:
        stream = self._some_queue()
        async with self._nats:
            try:
                await _surely(lambda: self._world.js.delete_consumer(stream, CONSUMER))
            except nats.js.errors.NotFoundError:
                return
            self._tell(f"deleted the consumer of {stream}")

    def _begin_loss(self) -> float:
        now, book = time.time(), self._world.book
        book.events_lost_at = min(book.events_lost_at, now)
        return now

    async def _note_unacked(self, before: frozenset[str] = frozenset()) -> None:
        """Note the watches whose final event has gone and whose message hasn't: they will be delivered again.

        `before`: whose message was there before the loss. All servers may be away until one was watched again.
        """
        ended = {
            message.headers.get("Bridge-Watch", "")
            for message in self._world.archive.messages
            if message.gone_at < math.inf and message.headers.get("Bridge-Kind", "").startswith(ENDINGS)
        }
        if ended:
            self._world.book.unacked |= ended & (before | await self._read_unacked())

    async def _read_unacked(self) -> frozenset[str]:
        try:
            queue, _ = await _surely(lambda: self._world.read_queue(self._world.names.watches_stream))
        except nats.js.errors.NotFoundError:
            return frozenset()  # it was deleted, and no bridge has made it again yet: no message will be delivered
        return frozenset(decode(message.body)["id"] for message in queue)

    def _some_queue(self) -> str:
        return self._chance.choice([self._world.names.requests_stream, self._world.names.watches_stream])

    def _note_lost(self, stream: str, lost: list[Stored]) -> None:
        book = self._world.book
        if stream == self._world.names.requests_stream:
            book.lost_requests += [(message.sequence, message.stored_at) for message in lost]
        else:
            watches = [decode(message.body) for message in lost]
            book.lost_watches |= {watch["id"]: watch["task"] for watch in watches}

    async def _info(self, stream: str) -> StreamInfo:
        """What JetStream says of the stream, once it is there: a bridge makes it again when it was deleted."""
        while True:
            try:
                return await _surely(lambda: self._world.js.stream_info(stream))
            except nats.js.errors.NotFoundError:
                await asyncio.sleep(0.1)

    async def _seal(self, stream: str) -> None:
        """From now on it takes no messages."""
        while not (config := (await self._info(stream)).config).sealed:
            config.sealed = True
            # A try that wasn't answered may have sealed it, and JetStream refuses to seal it again.
            with contextlib.suppress(nats.errors.Error):
                await self._world.js.update_stream(config)

    async def _cap(self, stream: str, most: int) -> None:
        config = (await self._info(stream)).config
        config.max_msgs = most
        await _surely(lambda: self._world.js.update_stream(config))

    async def _deleted(self, stream: str) -> None:
        try:
            await _surely(lambda: self._world.js.delete_stream(stream))
        except nats.js.errors.NotFoundError:
            return  # by a try that wasn't answered


class _AllBridgesUp(AsyncExitStack):
    """All bridges run, are ready, and stay so: one that starts just now may refuse a stream that is about to go."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def __aenter__(self) -> _AllBridgesUp:
        for replica in self._world.replicas:
            await self.enter_async_context(replica.busy)
            await replica.process.ready(BEGIN_S)
        return self


async def _surely(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of JetStream, asked until it gives one."""
    deadline = time.monotonic() + SURE_S
    while True:
        try:
            return await call()
        except nats.js.errors.NotFoundError:
            raise
        except (TimeoutError, nats.errors.Error):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
