"""The board's parts as server-sent events: what changed, at most once a second, to a bounded number of viewers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..domain.durations import rfc3339
from .board import BoardView, parts
from .health import BoardSource

MAX_VIEWERS = 32
TICK_S, LOOK_S = 0.25, 1.0
"""How soon a stopping bridge is noticed, and how often what changed is sent."""
SHARE = 0.1
"""Of one core, for all viewers together: when that is not enough, they are told less often."""
SILENCE_S = 15.0
"""A viewer that hears nothing for longer would not know that it is cut off; nor would the bridge."""
SEND_S = 20.0
_RETRY = b"retry: 2000\n\n"


class Viewers:
    """Counts who is sent the board live."""

    def __init__(self) -> None:
        self.count = 0

    def full(self) -> bool:
        return self.count >= MAX_VIEWERS


class LiveStream(Response):
    """One viewer's stream: `view` is asked for what there is to show, until it shows a bridge that stops."""

    media_type = "text/event-stream"

    def __init__(self, viewers: Viewers, feed: BoardSource, view: Callable[[], BoardView]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx in between would hold it back
        self._viewers = viewers
        self._feed = feed
        self._view = view
        self._sent: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        gone = asyncio.create_task(_gone(receive))
        self._viewers.count += 1
        try:
            await send(start)
            with self._feed.keep_current():
                async with asyncio.timeout(None) as patience:
                    await self._tell(gone, send, patience)
        except (TimeoutError, OSError):  # it takes nothing in any more
            return
        finally:
            self._viewers.count -= 1
            gone.cancel()

    async def _tell(self, gone: asyncio.Task[None], send: Send, patience: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        spoken = due = loop.time()
        piece = _RETRY
        while not gone.done() and not self._view_stops():
            now = loop.time()
            if now >= due:
                piece += self._news()
                due = now + max(LOOK_S, (loop.time() - now) * self._viewers.count / SHARE)
            if now - spoken >= SILENCE_S:
                piece += b":\n\n"
            if piece:
                patience.reschedule(now + SEND_S)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                patience.reschedule(None)
                spoken, piece = now, b""
            await asyncio.wait((gone,), timeout=TICK_S)
        if not gone.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _view_stops(self) -> bool:
        return self._view().health.stopping

    def _news(self) -> bytes:
        """The parts that aren't as they were sent, and the time by the bridge's clock."""
        now = parts(self._view())
        changed = {name: html for name, html in now.items() if html != self._sent.get(name)}
        if not changed:
            return b""
        self._sent.update(changed)
        return b"data: " + msgspec.json.encode({"now": rfc3339(time.time()), "parts": changed}) + b"\n\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
