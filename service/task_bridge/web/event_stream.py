"""Stored events as server-sent events, one response for each reader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..domain.event_query import StoredEvent

KEEPALIVE_S = 15.0
"""Silence after which a comment is sent: it shows both sides that the connection still works."""
_RETRY = b"retry: 2000\n\n"


class EventStream(Response):
    """Sends events until they end, the reader leaves, `stopping` is set, or the token is no longer `is_current`.

    Whoever reads slowly gets the next event when the last one is on its way; nothing is kept for him meanwhile.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[StoredEvent], stopping: asyncio.Event, is_current: Callable[[], bool]
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx in between would buffer the stream
        self._events = events
        self._stopping = stopping
        self._is_current = is_current

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": _RETRY, "more_body": True})
        ending: list[asyncio.Task[object]] = [
            asyncio.create_task(_wait_for_disconnect(receive)),
            asyncio.create_task(self._stopping.wait()),
        ]
        try:
            await self._send_events(ending, send)
        finally:
            for one in ending:
                one.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, ending: list[asyncio.Task[object]], send: Send) -> None:
        upcoming: asyncio.Task[StoredEvent | None] | None = None
        try:
            while self._is_current():
                upcoming = upcoming or asyncio.create_task(self._read_event())
                await asyncio.wait((upcoming, *ending), timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if any(one.done() for one in ending):
                    return
                chunk = b":\n\n"
                if upcoming.done():
                    event, upcoming = upcoming.result(), None
                    if event is None:
                        return
                    chunk = format_event(event)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            if upcoming is not None:
                upcoming.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await upcoming

    async def _read_event(self) -> StoredEvent | None:
        return await anext(self._events, None)


def format_event(event: StoredEvent) -> bytes:
    """Return an event as a message of a stream of server-sent events. Its body can't end the message."""
    lines = event.body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"id: %d\n%b\n\n" % (event.sequence, b"\n".join(b"data: " + line for line in lines))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
