"""The paths. GET and HEAD only; the security headers are on every answer, errors too."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .board import STYLE_HASH, page
from .health import State, readiness

_POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build_web(state: State) -> ASGIApp:
    """The ASGI app of all pages."""
    pages = _Pages(state)
    web = Starlette(
        routes=[
            Route("/", pages.board),
            Route("/livez", pages.livez),
            Route("/readyz", pages.readyz),
            Route("/metrics", pages.metrics),
            Route("/asyncapi.json", pages.asyncapi),
        ]
    )
    web.router.redirect_slashes = False
    return _SecurityHeaders(web)


class _Pages:
    """The answers. Coroutines although nothing waits: Starlette runs plain functions in threads."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def board(self, _: Request) -> Response:
        return HTMLResponse(page(self._state.health()))

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


class _SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
