"""The paths. GET and HEAD only; the security headers are on every answer, errors too."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from importlib.resources import files

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..domain.board import RowFilter
from .board import BoardView, page
from .health import BoardSource, WebState, readiness
from .live import LiveStream, Viewers

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ASSETS = {"board.css": "text/css", "board.js": "text/javascript", "board.svg": "image/svg+xml"}
_FIRST_READ_S, _TICK_S = 3.0, 0.05
_MAX_WORDS = 200


def build_web(state: WebState, feed: BoardSource) -> ASGIApp:
    """The ASGI app of all pages."""
    pages = _Pages(state, feed)
    web = Starlette(
        routes=[
            Route("/", pages.board),
            Route("/live", pages.live),
            Route("/static/{name}", pages.asset),
            Route("/livez", pages.livez),
            Route("/readyz", pages.readyz),
            Route("/metrics", pages.metrics),
            Route("/asyncapi.json", pages.asyncapi),
        ]
    )
    web.router.redirect_slashes = False
    return _SecurityHeaders(_OnlyReading(web))


class _Pages:
    """The answers. Coroutines although hardly any waits: Starlette runs plain functions in threads."""

    def __init__(self, state: WebState, feed: BoardSource) -> None:
        self._state = state
        self._feed = feed
        self._viewers = Viewers()

    async def board(self, request: Request) -> Response:
        asked = _filter(request.query_params)
        if request.method == "HEAD":  # a probe isn't somebody who looks
            return HTMLResponse(page(self._view(asked)))
        with self._feed.keep_current():
            await self._first_read()
            return HTMLResponse(page(self._view(asked)))

    async def _first_read(self) -> None:
        """Waits, within reason, for what a first viewer would miss."""
        until = time.monotonic() + _FIRST_READ_S
        while time.monotonic() < until and self._state.health().nats.connected:
            overview = self._feed.board
            if self._feed.trouble or (overview and overview.complete):
                return
            await asyncio.sleep(_TICK_S)

    async def live(self, request: Request) -> Response:
        if self._viewers.full():
            told = f"{self._viewers.count} look at the board live already; reload instead, or try again.\n"
            return PlainTextResponse(told, 503, headers={"Retry-After": "10"})
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        asked = _filter(request.query_params)
        return LiveStream(self._viewers, self._feed, lambda: self._view(asked))

    def _view(self, asked: RowFilter) -> BoardView:
        feed = self._feed
        return BoardView(self._state.health(), feed.board, feed.trouble, asked, time.time())

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            return PlainTextResponse("Not Found", 404)
        return Response(_asset(name), media_type=_ASSETS[name])

    async def livez(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})  # whoever gets it knows that the event loop ticks

    async def readyz(self, _: Request) -> Response:
        health = self._state.health()
        return JSONResponse(readiness(health), 503 if health.status == "unready" else 200)

    async def metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._state.metrics()), headers={"Content-Type": content_type})

    async def asyncapi(self, _: Request) -> Response:
        return Response(self._state.asyncapi(), media_type="application/json")


@cache
def _asset(name: str) -> bytes:
    return (files(__package__) / "static" / name).read_bytes()


def _filter(query: QueryParams) -> RowFilter:
    number = query.get("page", "1")
    page_number = int(number) if number.isascii() and number.isdigit() and len(number) < 8 else 1
    return RowFilter(query.get("q", "")[:_MAX_WORDS], query.get("vcenter", "")[:_MAX_WORDS], page_number)


class _OnlyReading:
    """Refuses what isn't a reading, whether its path is there or not: nothing here is changed by HTTP."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            app = PlainTextResponse("Method Not Allowed", 405, headers={"Allow": "GET, HEAD"})
        await app(scope, receive, send)


class _SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
