"""What the board shows, read from the streams while somebody looks, over a connection of its own.

Nothing is read while nobody looks, and all who look share one reader. Its connection is its own so that what it
reads (events carry results) never stands before the bridge's own messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js.api import StreamState

from ..domain.board import MAX_ENDINGS, MAX_ROWS, PAGE_ROWS, WatchBoard, WatchRow
from ..domain.errors import BridgeError
from ..domain.events import WatchRef, from_cloudevent
from ..domain.subjects import SubjectNames
from ..domain.watch import Watch
from ..settings import NatsSettings
from .connect import connect
from .connection import INBOX_PREFIX
from .nats_py_workarounds import cancel_and_wait
from .ordered_consumer import OrderedConsumer
from .streams import StoredMessage, Streams, translate_errors
from .watch_store import decode_watch

log = structlog.get_logger(__name__)

CONNECT_S, PAUSE_S = 4.0, 2.0
LINGER_S = 20.0
"""How long it goes on when nobody looks any more: a page without scripts comes back every ten seconds."""
REREAD_S = 30.0
_PAGE, _AT_ONCE = 1000, 50
_CONNECTION = {"inbox_prefix": INBOX_PREFIX, "allow_reconnect": False, "ping_interval": 5, "max_outstanding_pings": 2}


class BoardReader:
    """`overview` is what was read, None before; `trouble` says why it isn't up to date."""

    def __init__(self, settings: NatsSettings, names: SubjectNames) -> None:
        self.board: WatchBoard | None = None
        self.trouble: str | None = None
        self._settings = settings
        self._names = names
        self._looking = 0
        self._reading: asyncio.Task[None] | None = None
        self._rest: asyncio.TimerHandle | None = None

    @contextmanager
    def keep_current(self) -> Iterator[None]:
        """While this is entered, `overview` is kept up to date."""
        self._looking += 1
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="the board's reader")
        try:
            yield
        finally:
            self._looking -= 1
            if not self._looking:
                self._rest = asyncio.get_running_loop().call_later(LINGER_S, self._stop)

    async def close(self) -> None:
        """Reads no more."""
        reading = self._reading
        self._stop()
        if reading is not None:
            await cancel_and_wait(reading)

    def _stop(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self._rest = self.board = self.trouble = None

    async def _read(self) -> None:
        """For as long as somebody looks, over every outage."""
        while True:
            try:
                await self._read_once()
            except (BridgeError, nats.errors.Error, OSError, TimeoutError) as error:
                self.trouble = str(error) or type(error).__name__
                log.debug("board_not_current", reason=self.trouble)
            except Exception as error:
                self.trouble = f"the board's reader failed ({type(error).__name__}); see the log"
                log.exception("board_failed")
            await asyncio.sleep(PAUSE_S)

    async def _read_once(self) -> None:
        client = await connect(self._settings, CONNECT_S, name="task-bridge board", **_CONNECTION)
        try:
            reader = _Reader(client, Streams(client, self._settings.js_domain), self._names)
            state = await reader.begin()
            self.board, self.trouble = reader.overview, None
            await _first_to_fail(reader.follow(state.last_seq + 1), reader.go_on(state))
        finally:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await client.close()


class _Reader:
    def __init__(self, client: Client, streams: Streams, names: SubjectNames) -> None:
        self.overview = WatchBoard()
        self._client = client
        self._streams = streams
        self._names = names

    async def begin(self) -> StreamState:
        """Reads what is to be seen at once; the state of the stream of events before."""
        stream = self._names.events_stream
        info = await translate_errors(self._streams.js.stream_info(stream), stream)
        await self._read_watches(_PAGE)
        return info.state

    async def go_on(self, state: StreamState) -> None:
        """The endings, how the watches of the first page stand, and then all of them, again now and then: some come
        and go without an event."""
        for stored in await self._endings(state.first_seq, state.last_seq):
            self._tell(stored)
        await self._read_states(self.overview.rows_without_events()[:PAGE_ROWS])
        self.overview.complete = True
        while True:
            await self._read_watches(MAX_ROWS)
            await self._read_states(self.overview.rows_without_events(), at_leisure=True)
            await asyncio.sleep(REREAD_S)

    async def follow(self, first: int) -> None:
        """Every event from sequence `first` on, without end."""
        stream, subjects = self._names.events_stream, [f"{self._names.events}.>"]
        followed = OrderedConsumer(self._streams.js, self._client, stream, subjects, first=first)
        async with aclosing(followed.messages()) as messages:
            async for message in messages:
                event = from_cloudevent(message.data, stalled_reported=False)
                if event is not None:
                    self.overview.apply_event(event, (message.headers or {}).get("Bridge-Instance", ""))

    async def _read_watches(self, most: int) -> None:
        self.overview.begin_refresh()
        found: list[Watch] = []
        after, more = 0, 1
        while more and len(found) < most:
            page, more = await self._streams.read_page(
                self._names.watches_stream, f"{self._names.watches}.*.*", after, _PAGE
            )
            found += [read.watch for read in map(decode_watch, page) if read]
            after = page[-1].sequence if page else 0
        rows = [(watch.vcenter, watch.task, watch.ref) for watch in found]
        self.overview.finish_refresh(rows, await self._beyond(rows) if more else Counter())

    async def _beyond(self, rows: list[tuple[str, str, WatchRef]]) -> Counter[str]:
        """How many watches there are besides these, of the vCenters that these are of."""
        beyond: Counter[str] = Counter()
        for vcenter, shown in Counter(vcenter for vcenter, _, _ in rows).items():
            subjects = f"{self._names.watches}.{vcenter}.*"
            one, more = await self._streams.read_page(self._names.watches_stream, subjects, 0, 1)
            beyond[vcenter] = len(one) + more - shown
        return +beyond

    async def _read_states(self, rows: list[WatchRow], *, at_leisure: bool = False) -> None:
        """The last event of each watch. At leisure a quarter of the time: nobody waits, and the bridge has work."""
        stream, clock = self._names.events_stream, asyncio.get_running_loop().time
        at_once = _AT_ONCE if at_leisure else PAGE_ROWS
        for start in range(0, len(rows), at_once):
            part, began = rows[start : start + at_once], clock()
            subjects = [self._names.event_filter(row.vcenter, row.task) for row in part]
            # One by one: nats-server sends the last message of every kind of event to who asks for many tasks.
            found = await asyncio.gather(*(self._streams.read_last(stream, subject) for subject in subjects))
            for row, stored in zip(part, found, strict=True):
                if stored is not None and stored.headers.get("Bridge-Watch") == row.watch_id:
                    self._tell(stored)
                else:
                    self.overview.mark_without_events(row)
            if at_leisure:
                await asyncio.sleep(3 * (clock() - began))

    async def _endings(self, first: int, last: int) -> list[StoredMessage]:
        """The newest final events, oldest first: their subjects alone have an outcome as a last token."""
        stream, finals = self._names.events_stream, f"{self._names.events}.*.*.*.*"

        async def following(after: int) -> int:
            one, more = await self._streams.read_page(stream, finals, after, 1)
            return len(one) + more

        # Where to begin isn't known, so several places are asked about at once: first far apart, then between.
        start, end = first - 1, last
        for places in (_further_and_further_back, _evenly):
            asked = places(start, end)
            for place, count in zip(asked, await asyncio.gather(*map(following, asked)), strict=True):
                if count >= MAX_ENDINGS:
                    start = max(start, place)
                else:
                    end = min(end, place)
        found: list[StoredMessage] = []
        more = 1
        while more:
            page, more = await self._streams.read_page(stream, finals, start, MAX_ENDINGS)
            found = [*found, *page][-MAX_ENDINGS:]
            start, more = (page[-1].sequence, more) if page else (start, 0)
        return found

    def _tell(self, stored: StoredMessage) -> None:
        event = from_cloudevent(stored.body, stalled_reported=False)
        if event is not None:
            self.overview.apply_event(event, stored.headers.get("Bridge-Instance", ""))


def _further_and_further_back(start: int, end: int) -> list[int]:
    distances = itertools.takewhile(lambda distance: end - distance > start, (64 * 4**n for n in itertools.count()))
    return [end - distance for distance in distances]


def _evenly(start: int, end: int) -> list[int]:
    return [start + (end - start) * part // 8 for part in range(1, 8)]


async def _first_to_fail(*endless: Coroutine[None, None, None]) -> None:
    """Runs what never ends until one of it fails, and raises that."""
    running = [asyncio.create_task(one) for one in endless]
    try:
        await asyncio.gather(*running)
    finally:
        await cancel_and_wait(*running)
