"""The HTTP paths. Those of pages take GET and HEAD only. Every answer has the security headers, errors too."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..domain.board import SORT_KEYS, RowFilter, WatchBoard
from ..domain.errors import NatsUnavailable
from ..domain.subjects import is_vcenter_name
from ..domain.task_ids import parse_task_id
from . import export, task_page
from .board import BoardRenderer, BoardView
from .headers import WithHeaders
from .health import BoardSource, WebState, build_readiness
from .live import LiveStream, Viewers
from .scrape import build_scrape
from .v1 import is_api_path, refuse_all

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
_FIRST_READ_S, _FILE_READ_S, _TICK_S = 3.0, 30.0, 0.05
_MAX_FILTER_LENGTH = 200
_MAX_TASK_LENGTH = 1024


def build_web(state: WebState, source: BoardSource, api: ASGIApp = refuse_all) -> ASGIApp:
    """Build the ASGI app of all pages, and of `api` below /v1."""
    pages = _Pages(state, source)
    web = Starlette(
        routes=[
            Route("/", pages.board),
            Route("/live", pages.live),
            Route("/view.json", pages.view_json),
            Route("/view.csv", pages.view_csv),
            Route("/task/{vcenter}/{task:path}", pages.task),
            Route("/static/{name}", pages.asset),
            Route("/livez", pages.livez),
            Route("/readyz", pages.readyz),
            Route("/metrics", pages.metrics),
            Route("/asyncapi.json", pages.asyncapi),
        ]
    )
    web.router.redirect_slashes = False
    return WithHeaders(_Paths(_ReadOnly(web), api), lambda: _HEADERS)


class _Pages:
    """The answers. They are coroutines because Starlette runs plain functions in threads; hardly any waits."""

    def __init__(self, state: WebState, source: BoardSource) -> None:
        self._state = state
        self._source = source
        self._renderer = BoardRenderer()
        self._task_renderer = task_page.TaskPageRenderer()
        self._viewers = Viewers()
        self._scrapes = asyncio.Lock()

    async def board(self, request: Request) -> Response:
        row_filter = _parse_filter(request.query_params)
        if request.method != "HEAD":  # a probe with HEAD is no viewer: nothing is read for it
            with self._source.keep_current():
                await self._wait_for_first_read()
                return HTMLResponse(self._renderer.render_page(self._read_view(row_filter)))
        return HTMLResponse(self._renderer.render_page(self._read_view(row_filter)))

    async def _wait_for_first_read(self) -> None:
        """Wait until the board is complete or can't be read, a few seconds at most."""
        await self._wait_for_board(lambda board: board.complete, _FIRST_READ_S)

    async def _wait_for_board(self, is_read: Callable[[WatchBoard], bool], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and self._state.health().nats.connected:
            board = self._source.board
            if self._source.trouble or (board and is_read(board)):
                return
            await asyncio.sleep(_TICK_S)

    async def live(self, request: Request) -> Response:
        if self._viewers.is_full():
            message = (
                f"{self._viewers.count} viewers get live updates already. Reload the page instead, or try again.\n"
            )
            return PlainTextResponse(message, 503, headers={"Retry-After": "10"})
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        row_filter = _parse_filter(request.query_params)
        return LiveStream(self._viewers, self._source, self._renderer, lambda: self._read_view(row_filter))

    async def view_json(self, request: Request) -> Response:
        chosen = await self._select_export(request)
        if isinstance(chosen, Response):
            return chosen
        # In a thread: twenty thousand rows would hold up the event loop.
        return Response(await asyncio.to_thread(export.build_json, chosen), media_type="application/json")

    async def view_csv(self, request: Request) -> Response:
        if request.method != "HEAD":
            with self._source.keep_current():
                await self._wait_for_board(lambda board: board.complete and not board.count_unread(), _FILE_READ_S)
        chosen = await self._select_export(request)
        if isinstance(chosen, Response):
            return chosen
        if not chosen.is_whole:  # JSON says what it lacks; a table would look as if that were all
            return _refuse_unread("not all rows are read yet")
        headers = {"Content-Disposition": 'attachment; filename="watches.csv"'}
        return Response(await asyncio.to_thread(export.build_csv, chosen), media_type="text/csv", headers=headers)

    async def _select_export(self, request: Request) -> export.Export | Response:
        """Return what a file shows, or 503 while nothing has been read."""
        if request.method != "HEAD":
            with self._source.keep_current():
                await self._wait_for_first_read()
        view = self._read_view(_parse_filter(request.query_params))
        if view.board is None:
            return _refuse_unread(view.stale_reason or "not done yet")
        return export.select_export(view, view.board)

    async def task(self, request: Request) -> Response:
        vcenter, task = request.path_params["vcenter"], request.path_params["task"]
        if not is_vcenter_name(vcenter) or not 0 < len(task) <= _MAX_TASK_LENGTH:
            return PlainTextResponse("Not Found", 404)
        if request.method == "HEAD":  # nothing is read for it
            return Response(media_type="text/html")
        with contextlib.suppress(ValueError):  # 1.0 took ids that are refused today
            task = parse_task_id(task)
        view = await self._read_task(vcenter, task)
        status = 503 if view.trouble else 200 if view.is_known else 404
        if request.query_params.get("format") == "json":
            return Response(task_page.build_json(view), status, media_type="application/json")
        return HTMLResponse(self._task_renderer.render(view), status)

    async def _read_task(self, vcenter: str, task: str) -> task_page.TaskView:
        timeline, trouble = None, None
        try:
            timeline = await self._source.read_timeline(vcenter, task)
        except NatsUnavailable as error:
            trouble = str(error).rstrip(".")
        return task_page.TaskView(self._state.health(), vcenter, task, timeline, trouble, self._state.server_time())

    def _read_view(self, row_filter: RowFilter) -> BoardView:
        source = self._source
        return BoardView(self._state.health(), source.board, source.trouble, row_filter, self._state.server_time())

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            return PlainTextResponse("Not Found", 404)
        return Response(_read_asset(name), media_type=_ASSETS[name])

    async def livez(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})  # that it answers shows that the event loop ticks

    async def readyz(self, _: Request) -> Response:
        health = self._state.health()
        return JSONResponse(build_readiness(health), 503 if health.status == "unready" else 200)

    async def metrics(self, request: Request) -> Response:
        async with self._scrapes:  # each clears and sets gauges, which another would lack
            # Thousands of series take a tenth of a second, for which the event loop needn't wait.
            return await asyncio.to_thread(build_scrape, self._state.metrics(), request.headers)

    async def asyncapi(self, _: Request) -> Response:
        return Response(self._state.asyncapi(), media_type="application/json")


def _refuse_unread(reason: str) -> Response:
    return PlainTextResponse(f"Being read: {reason}. Try again.\n", 503, headers={"Retry-After": "5"})


@cache
def _read_asset(name: str) -> bytes:
    return (files(__package__) / "static" / name).read_bytes()


def _parse_filter(query: QueryParams) -> RowFilter:
    number = query.get("page", "1")
    page = int(number) if number.isascii() and number.isdigit() and len(number) < 8 else 1
    words, vcenter, status, outcome, sort = (
        query.get(name, "")[:_MAX_FILTER_LENGTH] for name in ("q", "vcenter", "status", "outcome", "sort")
    )
    return RowFilter(
        words, vcenter, page, status.lower(), outcome.lower(), sort if sort.removeprefix("-") in SORT_KEYS else ""
    )


class _Paths:
    """Pass on what is below /v1 to the API, and all else to the pages."""

    def __init__(self, pages: ASGIApp, api: ASGIApp) -> None:
        self._pages = pages
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_api = scope["type"] == "http" and is_api_path(scope["path"])
        await (self._api if is_api else self._pages)(scope, receive, send)


class _ReadOnly:
    """Refuse every method but GET and HEAD, on paths that don't exist too: the pages change nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            app = PlainTextResponse("Method Not Allowed", 405, headers={"Allow": "GET, HEAD"})
        await app(scope, receive, send)
