"""A reader of a stream that yields each message once, in order, through every outage, and needs no consumer.

Direct gets read what is stored. Core subscriptions to the same subjects only say that there is more to read; a lost
one costs `IDLE_S`. So readers need no permission to create consumers, which could deliver to any subject
(docs/decisions/0021).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime
from functools import partial

import nats.errors
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable
from ..waits import wait_for_event
from .connect import denied_permission
from .nats_py_workarounds import subscription
from .streams import StoredMessage, Streams

IDLE_S = 2.0
PAUSE_S = 0.2
_LAG_PAUSE_S = 0.02
_LAG_READS = 50
_ATTEMPTS = 3
_PAGE_MESSAGES = 1000


Subscribe = Callable[[str, Callable[[Msg], Awaitable[None]]], AbstractAsyncContextManager[None]]
"""Calls the second argument for core messages of the first, a subject, while its context is entered."""


class _Position:
    """How far one subject is read.

    `anchor`: the last message that was read, None if none of this stream was. `is_stale`: there may be more.
    `announced`: the newest sequence that a core message named; `lag_reads`: how many reads haven't found it.
    """

    def __init__(self, subject: str, last_read: int, news: asyncio.Event) -> None:
        self.subject = subject
        self.last_read = last_read
        self.anchor: StoredMessage | None = None
        self.is_stale = True
        self.announced = 0
        self.lag_reads = 0
        self._news = news

    @property
    def is_lagging(self) -> bool:
        return self.announced > self.last_read and self.lag_reads < _LAG_READS

    async def on_message(self, message: Msg) -> None:
        """Note that there is something to read. Republished messages name their sequence."""
        self.is_stale = True
        sequence = (message.headers or {}).get("Nats-Sequence", "")
        self.announced, self.lag_reads = int(sequence) if sequence.isdecimal() else 0, 0
        self._news.set()

    def advance(self, message: StoredMessage) -> None:
        self.anchor, self.last_read = message, message.sequence

    def start_over(self) -> None:
        self.anchor, self.last_read, self.announced, self.is_stale = None, 0, 0, True


class StreamReader:
    """Reads the messages of `stream` under `subjects`: all, those stored since a moment, or from sequence `first` on.

    Iterate over `messages()`. It ends at the newest message, or never with `follow`. The messages of each subject come
    in order. `subscribe` replaces a subscription for each subject, if several readers share one.
    """

    def __init__(
        self,
        streams: Streams,
        stream: str,
        subjects: Sequence[str],
        *,
        since: datetime | None = None,
        follow: bool = True,
        first: int = 1,
        subscribe: Subscribe | None = None,
    ) -> None:
        self._streams = streams
        self._client = streams.connection
        self._subscribe = subscribe or partial(subscription, streams.connection)
        self._stream = stream
        self._since = since
        self._follow = follow
        self._news = asyncio.Event()
        self._positions = [_Position(subject, first - 1, self._news) for subject in subjects]
        self._was_read = False
        self._unanswered = 0
        self._reconnects = self._client.stats["reconnects"]
        self._created: str | None = None  # of the stream that is read; None while unknown
        self._may_read_info = True

    async def messages(self) -> AsyncGenerator[StoredMessage, None]:
        """Yield the messages.

        A stream that is deleted and created again meanwhile is read from its first message.
        Raises NatsUnavailable when the stream can't be read at the start, or the connection was closed.
        """
        async with AsyncExitStack() as stack:
            for position in self._positions if self._follow else ():
                await stack.enter_async_context(self._subscribe(position.subject, position.on_message))
            while True:
                await self._wait_until_connected()
                stale = next((position for position in self._positions if position.is_stale), None)
                if stale is not None:
                    for message in await self._read_or_wait(stale):
                        stale.advance(message)
                        yield message
                elif self._follow:
                    await self._wait_for_news()
                else:
                    return

    async def _wait_until_connected(self) -> None:
        while not self._client.is_connected:
            if self._client.is_closed:
                raise NatsUnavailable("The connection to NATS was closed.")
            await asyncio.sleep(PAUSE_S)

    async def _wait_for_news(self) -> None:
        """Wait until there may be something to read: a core message, or too long a silence."""
        self._news.clear()
        lagging = [position for position in self._positions if position.is_lagging]
        if not await wait_for_event(self._news, _LAG_PAUSE_S if lagging else IDLE_S):
            for position in lagging or self._positions:
                position.is_stale = True
                position.lag_reads += 1

    async def _read_or_wait(self, position: _Position) -> list[StoredMessage]:
        """Return the next messages of a subject, none after a failure."""
        position.is_stale = False  # before: what is announced from now on may not be read
        try:
            messages = await self._read_page(position)
        except NatsUnavailable as error:
            position.is_stale = True
            self._give_up_at_the_start(error)
            await asyncio.sleep(PAUSE_S)
            return []
        self._was_read = True
        return messages

    async def _read_page(self, position: _Position) -> list[StoredMessage]:
        if position.anchor is None:
            await self._start_over_after_recreation()
            since = self._since if not position.last_read else None
            page, remaining = await self._read(position, position.last_read, since)
        else:
            # Read the last message again: only if it is still there, the sequences after it mean what they meant.
            page, remaining = await self._read(position, position.last_read - 1)
            if page and (page[0].sequence, page[0].stored_at) == (position.anchor.sequence, position.anchor.stored_at):
                del page[0]
            elif await self._start_over_after_recreation():
                return []
            if not page and remaining:  # the last message alone fills a page
                page, remaining = await self._read(position, position.last_read)
        position.is_stale = position.is_stale or remaining > 0
        return page

    async def _read(
        self, position: _Position, after: int, since: datetime | None = None
    ) -> tuple[list[StoredMessage], int]:
        return await self._streams.read_page(self._stream, position.subject, after, _PAGE_MESSAGES, since=since)

    async def _start_over_after_recreation(self) -> bool:
        """Read from the first message if the stream isn't the one that was read. Return whether it isn't."""
        if not self._may_read_info:
            return False
        reading = asyncio.ensure_future(self._streams.read_report(self._stream))
        try:
            while not reading.done():
                await asyncio.wait((reading,), timeout=PAUSE_S)
                if not reading.done() and self._is_denied("STREAM.INFO"):
                    # No answer comes then, and a stream that was recreated can't be recognized.
                    self._may_read_info = False
                    return False
            created = reading.result().created
        finally:
            reading.cancel()
        is_other = self._created not in (None, created)
        self._created = created
        if is_other:
            for position in self._positions:
                position.start_over()
        return is_other

    def _is_denied(self, request: str) -> bool:
        return denied_permission(self._client, f"{self._streams.prefix}.{request}.{self._stream}") is not None

    def _give_up_at_the_start(self, error: NatsUnavailable) -> None:
        """Raise NatsUnavailable if nothing was read yet and it is no use to try again.

        A stream that was there comes back.
        """
        if self._was_read:
            return
        denied = denied_permission(self._client, f"{self._streams.prefix}.DIRECT.GET.{self._stream}")
        if isinstance(error.__cause__, TimeoutError):
            was_away = not self._client.is_connected or self._client.stats["reconnects"] != self._reconnects
            self._unanswered += not was_away
            # A stream that lost its leader soon has another; a missing permission stays missing.
            if was_away or (self._unanswered < _ATTEMPTS and denied is None):
                return
        reason = denied or self._explain(error)
        raise NatsUnavailable(f"The stream {self._stream} can't be read: {reason}.") from error

    def _explain(self, error: NatsUnavailable) -> str:
        if isinstance(error.__cause__, nats.errors.NoRespondersError) and self._created is not None:
            return "it allows no direct gets; run `task-bridge provision`"
        if isinstance(error.__cause__, TimeoutError | nats.errors.NoRespondersError):
            return "JetStream doesn't answer"
        return str(error).removeprefix(f"{self._stream}: ")
