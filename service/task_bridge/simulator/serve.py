"""The simulated vCenter over real HTTP, in the running event loop."""

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
    """Serve the vCenter and yield its URL; port 0 picks a free port. At the end, responses in progress are aborted."""
    listener = _open_listener(host, port)
    app = _AbortableApp(vcenter.app)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            ssl_context_factory=(lambda _config, _default: ssl) if ssl else None,
        )
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    # Not `serve()`, which takes over the signals of the process.
    main_loop = asyncio.create_task(server.main_loop())
    try:
        bound_host, bound_port = listener.getsockname()[:2]
        yield f"{'https' if ssl else 'http'}://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
    finally:
        main_loop.cancel()
        with suppress(asyncio.CancelledError):
            await main_loop
        app.stopping = True
        await _abort_responses(server)
        shutdown = asyncio.create_task(server.shutdown(sockets=[listener]))
        # A TLS handshake under way becomes a connection only now, and uvicorn would wait for its client to leave.
        while not (await asyncio.wait((shutdown,), timeout=0.02))[0]:
            await _abort_responses(server)
        shutdown.result()


class _AbortableApp:
    """The app. Once `stopping` is set, its responses can be canceled without uvicorn reporting an error."""

    def __init__(self, app: ASGIApp) -> None:
        self.stopping = False
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.stopping:
                raise


def _open_listener(host: str, port: int) -> socket.socket:
    # With IPPROTO_TCP, unlike `socket.create_server`: otherwise asyncio doesn't set TCP_NODELAY, and responses take
    # 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


async def _abort_responses(server: uvicorn.Server) -> None:
    for connection in list(server.server_state.connections):
        if transport := getattr(connection, "transport", None):
            transport.abort()
    # One turn of the loop, in which the protocols notice that their connections are lost.
    await asyncio.sleep(0)
    responses = list(server.server_state.tasks)
    for response in responses:
        response.cancel()
    await asyncio.gather(*responses, return_exceptions=True)
