"""A reader of the board's content from the streams, which reads only while somebody views the board.

All viewers share one reader. It has its own connection, so that events with large results never delay the bridge's own
messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, contextmanager

import nats.errors
import structlog
from nats.aio.client import Client

from ..domain.board import MAX_ENDINGS, MAX_ROWS, PAGE_ROWS, WatchBoard, WatchRow
from ..domain.errors import BridgeError, NatsUnavailable
from ..domain.events import from_cloudevent
from ..domain.subjects import SubjectNames
from ..domain.timeline import TaskTimeline
from ..domain.watch import Watch
from ..settings import NatsSettings
from .connect import connect
from .connection import INBOX
from .infos import StreamState
from .nats_py_workarounds import cancel_and_wait
from .newest import count_messages, find_newest
from .stream_reader import StreamReader
from .streams import StoredMessage, Streams
from .timeline_reader import read_timeline
from .watch_store import decode_watch

log = structlog.get_logger(__name__)

CONNECT_S, PAUSE_S = 4.0, 2.0
LINGER_S = 20.0
"""How long it goes on without viewers: a page without scripts reloads every ten seconds."""
REREAD_S = 30.0
_PAGE_MESSAGES, _CONCURRENT_READS = 1000, 50
_CONCURRENT_TIMELINES = 2
"""They may hold 8 MiB each."""
_OUTAGES = (BridgeError, nats.errors.Error, OSError, TimeoutError)
_CONNECTION = {"allow_reconnect": False, "ping_interval": 5, "max_outstanding_pings": 2}


class BoardReader:
    """Keeps `board` up to date while it is viewed; None before. `trouble` says why it isn't up to date."""

    def __init__(self, settings: NatsSettings, names: SubjectNames) -> None:
        self.board: WatchBoard | None = None
        self.trouble: str | None = None
        self._settings = settings
        self._names = names
        self._viewers = 0
        self._reading: asyncio.Task[None] | None = None
        self._stop_timer: asyncio.TimerHandle | None = None
        self._timeline_slots = asyncio.Semaphore(_CONCURRENT_TIMELINES)

    @contextmanager
    def keep_current(self) -> Iterator[None]:
        """Keep `board` up to date until the context ends."""
        self._viewers += 1
        if self._stop_timer is not None:
            self._stop_timer.cancel()
            self._stop_timer = None
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="the board's reader")
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._stop_timer = asyncio.get_running_loop().call_later(LINGER_S, self._stop)

    async def close(self) -> None:
        """Stop reading."""
        reading = self._reading
        self._stop()
        if reading is not None:
            await cancel_and_wait(reading)

    async def read_timeline(self, vcenter: str, task: str) -> TaskTimeline:
        """Return what is stored about a task, over a connection for this read alone. Raises NatsUnavailable."""
        try:
            async with self._timeline_slots, self._connect("task-bridge task page") as client:
                return await read_timeline(Streams(client, self._settings.js_domain), self._names, vcenter, task)
        except _OUTAGES as error:
            raise NatsUnavailable(str(error) or type(error).__name__) from error

    @contextlib.asynccontextmanager
    async def _connect(self, name: str) -> AsyncIterator[Client]:
        client = await connect(self._settings, CONNECT_S, inbox=INBOX, name=name, **_CONNECTION)
        try:
            yield client
        finally:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await client.close()

    def _stop(self) -> None:
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self._stop_timer = self.board = self.trouble = None

    async def _read(self) -> None:
        """Read through every outage, until canceled."""
        while True:
            try:
                await self._read_until_failure()
            except _OUTAGES as error:
                self.trouble = str(error) or type(error).__name__
                log.debug("board_not_current", reason=self.trouble)
            except Exception as error:
                self.trouble = f"the board's reader failed ({type(error).__name__}); see the log"
                log.exception("board_failed")
            await asyncio.sleep(PAUSE_S)

    async def _read_until_failure(self) -> None:
        async with self._connect("task-bridge board") as client:
            reader = _BoardUpdater(client, Streams(client, self._settings.js_domain), self._names)
            state = await reader.read_watches()
            self.board, self.trouble = reader.board, None
            await _run_until_one_fails(reader.follow_events(state.last_seq + 1), reader.read_history(state))


class _BoardUpdater:
    """Applies what the streams hold to `board`, over one connection."""

    def __init__(self, client: Client, streams: Streams, names: SubjectNames) -> None:
        self.board = WatchBoard()
        self._client = client
        self._streams = streams
        self._names = names

    async def read_watches(self) -> StreamState:
        """Read a first page of watches, and return the state of the events' stream before that."""
        report = await self._streams.read_report(self._names.events_stream)
        await self._refresh_rows(_PAGE_MESSAGES)
        return report.state

    async def read_history(self, state: StreamState) -> None:
        """Read the endings and the states of the first page, then all watches again and again.

        Some watches come and go without an event, so following the events isn't enough.
        """
        for stored in await self._read_endings(state.first_seq, state.last_seq):
            self._apply(stored)
        await self._read_states(self.board.rows_without_events()[:PAGE_ROWS])
        self.board.complete = True
        while True:
            await self._refresh_rows(MAX_ROWS)
            await self._read_states(self.board.rows_without_events(), at_leisure=True)
            await asyncio.sleep(REREAD_S)

    async def follow_events(self, first: int) -> None:
        """Apply every event from sequence `first` on, without end."""
        stream, subjects = self._names.events_stream, [f"{self._names.events}.>"]
        async with aclosing(StreamReader(self._streams, stream, subjects, first=first).messages()) as messages:
            async for message in messages:
                self._apply(message)

    async def _refresh_rows(self, limit: int) -> None:
        self.board.begin_refresh()
        watches: list[Watch] = []
        after, remaining = 0, 1
        while remaining and len(watches) < limit:
            page, remaining = await self._streams.read_page(
                self._names.watches_stream, f"{self._names.watches}.*.*", after, _PAGE_MESSAGES
            )
            watches += [stored.watch for stored in map(decode_watch, page) if stored]
            after = page[-1].sequence if page else 0
        rows = [(watch.vcenter, watch.task, watch.ref) for watch in watches]
        unlisted: Counter[str] = Counter()
        if remaining:
            for vcenter, listed in Counter(vcenter for vcenter, _, _ in rows).items():
                subjects = f"{self._names.watches}.{vcenter}.*"
                unlisted[vcenter] = await count_messages(self._streams, self._names.watches_stream, subjects) - listed
        self.board.finish_refresh(rows, +unlisted)
        self.board.all_listed = self.board.all_listed or not remaining or limit >= MAX_ROWS

    async def _read_states(self, rows: list[WatchRow], *, at_leisure: bool = False) -> None:
        """Apply the last event of each watch; at leisure in a quarter of the time, to leave the CPU to the bridge."""
        stream, clock = self._names.events_stream, asyncio.get_running_loop().time
        batch_rows = _CONCURRENT_READS if at_leisure else PAGE_ROWS
        for start in range(0, len(rows), batch_rows):
            part, started_at = rows[start : start + batch_rows], clock()
            subjects = [self._names.event_filter(row.vcenter, row.task) for row in part]
            # One request per task: for several tasks nats-server sends the last message of every kind of event.
            last_events = await asyncio.gather(*(self._streams.read_last(stream, subject) for subject in subjects))
            for row, stored in zip(part, last_events, strict=True):
                if stored is not None and stored.headers.get("Bridge-Watch") == row.watch_id:
                    self._apply(stored)
                else:
                    self.board.mark_without_events(row)
            if at_leisure:
                await asyncio.sleep(3 * (clock() - started_at))

    async def _read_endings(self, first: int, last: int) -> list[StoredMessage]:
        """Return the newest final events, oldest first: only their subjects have an outcome as a last token."""
        stream, finals = self._names.events_stream, f"{self._names.events}.*.*.*.*"
        start = await find_newest(self._streams, stream, finals, MAX_ENDINGS, first, last)
        endings: list[StoredMessage] = []
        remaining = 1
        while remaining:
            page, remaining = await self._streams.read_page(stream, finals, start, MAX_ENDINGS)
            endings = [*endings, *page][-MAX_ENDINGS:]
            start, remaining = (page[-1].sequence, remaining) if page else (start, 0)
        return endings

    def _apply(self, stored: StoredMessage) -> None:
        event = from_cloudevent(stored.body, stalled_reported="Bridge-Stalled" in stored.headers)
        if event is not None:
            self.board.apply_event(event, stored.headers.get("Bridge-Instance", ""))


async def _run_until_one_fails(*endless: Coroutine[None, None, None]) -> None:
    """Run endless coroutines until one fails, and raise its error."""
    running = [asyncio.create_task(one) for one in endless]
    try:
        await asyncio.gather(*running)
    finally:
        await cancel_and_wait(*running)
