"""The board's sections as server-sent events: those that changed, at most once a second, to a limited number of
viewers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..domain.durations import rfc3339
from .board import BoardRenderer, BoardView
from .health import BoardSource

MAX_VIEWERS = 32
TICK_S, UPDATE_INTERVAL_S = 0.25, 1.0
"""How soon a stopping bridge is noticed, and how often changes are sent."""
MAX_CPU_SHARE = 0.1
"""Share of one core for all viewers together. When it is not enough, they get updates less often."""
KEEPALIVE_S = 15.0
"""Silence after which a message without changes is sent: it shows both sides that the connection still works."""
SEND_TIMEOUT_S = 20.0
_RETRY = b"retry: 2000\n\n"


class Viewers:
    """The number of viewers that get live updates."""

    def __init__(self) -> None:
        self.count = 0

    def is_full(self) -> bool:
        return self.count >= MAX_VIEWERS


class LiveStream(Response):
    """The stream of one viewer. It ends when the viewer leaves or `read_view` shows that the bridge stops."""

    media_type = "text/event-stream"

    def __init__(
        self, viewers: Viewers, source: BoardSource, renderer: BoardRenderer, read_view: Callable[[], BoardView]
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx in between would buffer the stream
        self._viewers = viewers
        self._source = source
        self._renderer = renderer
        self._read_view = read_view
        self._sent_sections: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        disconnect = asyncio.create_task(_wait_for_disconnect(receive))
        self._viewers.count += 1
        try:
            await send(start)
            with self._source.keep_current():
                async with asyncio.timeout(None) as send_timeout:
                    await self._send_updates(disconnect, send, send_timeout)
        except (TimeoutError, OSError):  # the viewer accepts nothing any more
            return
        finally:
            self._viewers.count -= 1
            disconnect.cancel()

    async def _send_updates(self, disconnect: asyncio.Task[None], send: Send, send_timeout: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        last_sent = next_update = loop.time()
        chunk = _RETRY
        while not disconnect.done() and not self._read_view().health.stopping:
            now = loop.time()
            if now >= next_update:
                chunk += self._render_changes()
                render_s = loop.time() - now
                next_update = now + max(UPDATE_INTERVAL_S, render_s * self._viewers.count / MAX_CPU_SHARE)
            if not chunk and now - last_sent >= KEEPALIVE_S:
                chunk += _build_message(self._read_view().now, {})
            if chunk:
                send_timeout.reschedule(now + SEND_TIMEOUT_S)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                send_timeout.reschedule(None)
                last_sent, chunk = now, b""
            await asyncio.wait((disconnect,), timeout=TICK_S)
        if not disconnect.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _render_changes(self) -> bytes:
        """Return a message with the sections that changed since they were sent, and the time by the bridge's clock."""
        view = self._read_view()
        sections = self._renderer.render_sections(view)
        changes = {name: html for name, html in sections.items() if html != self._sent_sections.get(name)}
        if not changes:
            return b""
        self._sent_sections.update(changes)
        return _build_message(view.now, changes)


def _build_message(now: float, changes: dict[str, str]) -> bytes:
    return b"data: " + msgspec.json.encode({"now": rfc3339(now), "parts": changes}) + b"\n\n"


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
