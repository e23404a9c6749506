"""The simulated vCenter over real HTTP, in the event loop that runs already."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ssl import SSLContext

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from .app import SimulatedVCenter


@asynccontextmanager
async def serve_vcenter(
    vcenter: SimulatedVCenter, host: str = "127.0.0.1", port: int = 0, ssl: SSLContext | None = None
) -> AsyncIterator[str]:
    """Serves until left, at the URL that it yields; port 0 picks a free one. Answers under way are cut off then."""
    listener = _listener(host, port)
    served = _Served(vcenter.app)
    server = uvicorn.Server(_config(served, ssl))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    # Not `serve()`: that takes over the signals of the process.
    ticking = asyncio.create_task(server.main_loop())
    try:
        yield _url(listener, ssl)
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        served.stopping = True
        await _cut_off(server)
        await server.shutdown(sockets=[listener])


class _Served:
    """The app, whose answers may be cut off when the server stops without uvicorn taking that for a mistake."""

    def __init__(self, app: ASGIApp) -> None:
        self.stopping = False
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.stopping:
                raise


def _listener(host: str, port: int) -> socket.socket:
    # Named TCP, unlike `socket.create_server`: else asyncio leaves TCP_NODELAY out, and answers take 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _config(app: ASGIApp, ssl: SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_context_factory=(lambda _config, _default: ssl) if ssl else None,
    )


def _url(listener: socket.socket, ssl: SSLContext | None) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if ssl else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def _cut_off(server: uvicorn.Server) -> None:
    for connection in list(server.server_state.connections):
        if transport := getattr(connection, "transport", None):
            transport.abort()
    # A turn of the loop, in which the protocols learn that their connections are lost.
    await asyncio.sleep(0)
    answering = list(server.server_state.tasks)
    for task in answering:
        task.cancel()
    await asyncio.gather(*answering, return_exceptions=True)
