"""Stored events for readers over HTTP: all of them share one connection, which is there while there are any.

A reader keeps no more than a page, and only one reads at a time: a hundred of them cost the bridge neither its memory
nor its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable
from ..domain.event_query import EventQuery, StoredEvent
from ..domain.events import FINAL_KINDS
from ..domain.subjects import SubjectNames
from ..settings import NatsSettings
from .connect import connect
from .connection import INBOX
from .stream_reader import StreamReader
from .streams import StoredMessage, Streams

log = structlog.get_logger(__name__)

CONNECT_S, PAUSE_S = 4.0, 1.0
PAGE_MESSAGES, PAGE_BYTES = 100, 256 * 1024
_PENDING_BYTES = 8 * 1024 * 1024
_CONNECTION = {"allow_reconnect": False, "ping_interval": 5, "max_outstanding_pings": 2}
_ANY = ("*", ">")


class JetStreamEventFeed:
    """Reads the events stream. `clock`: the time by nats-server's clock."""

    def __init__(self, settings: NatsSettings, names: SubjectNames, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._names = names
        self._clock = clock
        self._readers = 0
        self._connecting = asyncio.Lock()
        self._shared: _SharedConnection | None = None

    @asynccontextmanager
    async def open(
        self, query: EventQuery, permitted: frozenset[str] | None, after: int | None
    ) -> AsyncIterator[AsyncIterator[StoredEvent]]:
        """Read the events that match; see `EventFeed`."""
        self._readers += 1
        try:
            first = await self._find_first(after)
            async with aclosing(self._read(query, permitted, first)) as events:
                yield events
        finally:
            self._readers -= 1
            if not self._readers and self._shared is not None:
                shared, self._shared = self._shared, None
                await shared.close()

    async def _connect(self) -> _SharedConnection:
        async with self._connecting:
            if self._shared is None or not self._shared.client.is_connected:
                client = await connect(self._settings, CONNECT_S, inbox=INBOX, name="task-bridge http", **_CONNECTION)
                self._shared = _SharedConnection(client, self._settings.js_domain)
                await self._shared.subscribe(f"{self._names.events}.>")
            return self._shared

    async def _find_first(self, after: int | None) -> int:
        """Return the sequence to read first. Raises NatsUnavailable.

        A stream that hasn't come as far as `after` is another one than the reader knew: it is read from its beginning.
        """
        shared = await self._connect()
        report = await shared.streams.read_report(self._names.events_stream)
        return 1 if after is None or after > report.state.last_seq else after + 1

    async def _read(
        self, query: EventQuery, permitted: frozenset[str] | None, first: int
    ) -> AsyncGenerator[StoredEvent, None]:
        begins_at = query.begins_at(self._clock())
        since = None if begins_at is None else datetime.fromtimestamp(max(0.0, begins_at), UTC)
        while True:
            with contextlib.suppress(NatsUnavailable):
                async with aclosing(self._messages(query, first, since)) as messages:
                    async for message in messages:
                        first = message.sequence + 1
                        vcenter, _, kind = self._parse_subject(message.subject)
                        watch = message.headers.get("Bridge-Watch")
                        if (permitted is None or vcenter in permitted) and query.matches(vcenter, kind, watch):
                            yield StoredEvent(message.sequence, message.body)
                        if query.is_ended_by(kind, watch):
                            return
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(NatsUnavailable):
                first = await self._find_first(first - 1)

    async def _messages(
        self, query: EventQuery, first: int, since: datetime | None
    ) -> AsyncGenerator[StoredMessage, None]:
        """Yield what the stream has under the query's subject, from sequence `first` on, without end.

        One subject, since messages of several subjects have no common order. Raises NatsUnavailable.
        """
        shared = await self._connect()
        # The end of a watch must be seen, whatever kind is asked for.
        kind = None if query.watch is not None or query.kind is None else query.kind
        tail = f"{kind}.*" if kind in FINAL_KINDS else kind
        subject = self._names.stored_events_filter(query.vcenter, query.task, tail)
        stream = self._names.events_stream
        reader = StreamReader(
            shared.streams, stream, [subject], since=since, first=first, subscribe=shared.subscription
        )
        async with aclosing(reader.messages()) as messages:
            async for message in messages:
                yield message

    def _parse_subject(self, subject: str) -> tuple[str, str, str]:
        """Return the vCenter, the token of the task, and the kind with its outcome, of an event's subject."""
        vcenter, task, kind = subject.removeprefix(self._names.events + ".").split(".", 2)
        return vcenter, task, kind


class _SharedConnection:
    """A connection with one subscription to all events, which says to each reader that there is something to read."""

    def __init__(self, client: Client, domain: str | None) -> None:
        self.client = client
        self.streams = _ReadInTurn(client, domain)
        self._listeners: dict[object, tuple[list[str], Callable[[Msg], Awaitable[None]]]] = {}

    async def subscribe(self, subject: str) -> None:
        await self.client.subscribe(subject, cb=self._on_event, pending_bytes_limit=_PENDING_BYTES)

    @asynccontextmanager
    async def subscription(self, subject: str, callback: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[None]:
        key = object()
        self._listeners[key] = subject.split("."), callback
        try:
            yield
        finally:
            del self._listeners[key]

    async def _on_event(self, message: Msg) -> None:
        tokens = message.subject.split(".")
        for wanted, callback in list(self._listeners.values()):
            if all(one == other or one in _ANY for one, other in zip(wanted, tokens, strict=False)):
                await callback(message)

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self.client.close()


class _ReadInTurn(Streams):
    """Streams of which one page is read at a time, and nothing for as long as that took."""

    def __init__(self, connection: Client, domain: str | None) -> None:
        super().__init__(connection, domain, page_max_bytes=PAGE_BYTES)
        self._turn = asyncio.Lock()

    async def read_page(
        self, stream: str, subjects: str, after: int, limit: int, *, since: datetime | None = None
    ) -> tuple[list[StoredMessage], int]:
        """Return a page, a short one at most."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            began = clock()
            try:
                return await super().read_page(stream, subjects, after, min(limit, PAGE_MESSAGES), since=since)
            finally:
                await asyncio.sleep(min(clock() - began, PAUSE_S))
