"""Serves the pages in the event loop that runs already, and leaves the process's signals alone."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from starlette.types import ASGIApp

from ..domain.errors import CannotStart
from ..settings import Listen
from .connections import LimitedProtocol, LoopbackHosts, is_loopback_name

_log = structlog.stdlib.get_logger(__name__)

_BACKLOG = 128  # connections that asyncio accepts in one turn, before the limit can refuse any
_GRACE_S = 1  # answers under way are waited for: health must not hold up the handing over of watches
_CURES = {
    errno.EADDRINUSE: "is taken; end what listens there or set another port (0 picks one, off needs none)",
    errno.EACCES: "needs rights this process lacks; set a port above 1023",
    errno.EADDRNOTAVAIL: "is no address of this machine; set one that is, or 0.0.0.0 for all",
}


class WebServer:
    """`address` is where it listens, the picked port in it; None while it doesn't, and with `listen` None."""

    def __init__(self, app: ASGIApp, listen: Listen | None) -> None:
        self.address: Listen | None = None
        self._app = app
        self._listen = listen
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when connections are accepted. Raises CannotStart when the address can't be had."""
        if self._listen is None:
            return
        listener = await _listener(self._listen)
        host, port = listener.getsockname()[:2]
        self.address = Listen(host, port)
        app = LoopbackHosts(self._app) if is_loopback_name(host) else self._app
        self._server = _Server(_config(app))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="web")
        _log.info("http_listening", host=host, port=port)

    async def stop(self) -> None:
        """Ends within about a second; connections that take longer are cut."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._server.cut()
        self.address = self._server = self._serving = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the process's

    def cut(self) -> None:
        for connection in list(self.server_state.connections):
            if transport := getattr(connection, "transport", None):
                transport.abort()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=LimitedProtocol,
        backlog=_BACKLOG,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


async def _listener(listen: Listen) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        # `localhost` is mostly asked for as 127.0.0.1.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return _bound(socket.socket(family, kind, protocol), address)
    except OSError as error:
        why = _CURES.get(error.errno or 0) or f"can't be listened on: {error.strerror}; set host:port, or off"
        raise CannotStart(f"BRIDGE_HTTP_LISTEN: {listen.host}:{listen.port} {why}") from error


def _bound(listener: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        if os.name == "posix":  # elsewhere this would share the port with others
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now, not when uvicorn gets to it: who is told the port can connect
    except OSError:
        listener.close()
        raise
    return listener
