"""The simulated vCenter over real HTTP, in the event loop that runs already."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ssl import SSLContext

import uvicorn

from .app import SimulatedVCenter


@asynccontextmanager
async def serving(
    vcenter: SimulatedVCenter, host: str = "127.0.0.1", port: int = 0, ssl: SSLContext | None = None
) -> AsyncIterator[str]:
    """Serves until left, at the URL that it yields; port 0 picks a free one. Answers under way are cut off then."""
    listener = _listener(host, port)
    server = uvicorn.Server(_config(vcenter, ssl))
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
        await _stop(server, listener)


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


def _config(vcenter: SimulatedVCenter, ssl: SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        vcenter.app,
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


async def _stop(server: uvicorn.Server, listener: socket.socket) -> None:
    answering = list(server.server_state.tasks)
    for task in answering:
        task.cancel()
    await asyncio.gather(*answering, return_exceptions=True)
    for connection in list(server.server_state.connections):
        if transport := getattr(connection, "transport", None):
            transport.abort()
    await server.shutdown(sockets=[listener])
