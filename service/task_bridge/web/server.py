"""The web server. It runs in the current event loop and leaves the process's signals alone."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from functools import partial

import structlog
import uvicorn
from starlette.types import ASGIApp

from ..domain.errors import CannotStart
from ..settings import Listen
from .connections import LimitedProtocol, LoopbackHosts, accept_tls, is_loopback_name
from .headers import WithHeaders
from .tls import ServerCertificate

_log = structlog.stdlib.get_logger(__name__)

_BACKLOG = 128  # connections that asyncio accepts in one turn, before the limit can refuse any
_GRACE_S = 1  # for answers in progress; the web pages must not delay the handover of watches
_FIXES = {
    errno.EADDRINUSE: "is taken; stop what listens there or set another port (0 picks a free one, off uses none)",
    errno.EACCES: "needs rights that this process lacks; set a port above 1023",
    errno.EADDRNOTAVAIL: "is no address of this machine; set one of its addresses, or 0.0.0.0 for all",
}


class WebServer:
    """Serves `app` at `listen`, or nowhere if `listen` is None; by TLS if there is a `certificate`.

    `address` has the port that was picked. It is None while the server doesn't listen.
    """

    def __init__(self, app: ASGIApp, listen: Listen | None, certificate: ServerCertificate | None = None) -> None:
        self.address: Listen | None = None
        self._app = app
        self._listen = listen
        self._certificate = certificate
        self._server: _Server | None = None
        self._serve_task: asyncio.Task[None] | None = None
        self._accept_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to listen; return once connections are accepted. Raise CannotStart if the address can't be used."""
        if self._listen is None:
            return
        listener = await _open_listener(self._listen)
        host, port = listener.getsockname()[:2]
        self.address = Listen(host, port)
        config = uvicorn.Config(
            WithHeaders(LoopbackHosts(self._app) if is_loopback_name(host) else self._app, _build_date),
            http=LimitedProtocol,
            backlog=_BACKLOG,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._server = _Server(config)
        sockets = [listener] if self._certificate is None else []
        self._serve_task = asyncio.create_task(self._server.serve(sockets=sockets), name="web")
        if self._certificate is not None:
            listener.setblocking(False)
            create = partial(LimitedProtocol, config=config, server_state=self._server.server_state, app_state={})
            accepting = accept_tls(listener, create, self._server.server_state.connections, self._certificate)
            self._accept_task = asyncio.create_task(accepting, name="web accepts")
        _log.info("http_listening", host=host, port=port, scheme="https" if self._certificate else "http")

    async def stop(self) -> None:
        """Stop within about a second. Abort connections that take longer."""
        if self._server is None or self._serve_task is None:
            return
        self._server.exit_soon()
        if self._accept_task is not None:
            self._accept_task.cancel()
        await self._serve_task
        self._server.abort_connections()
        self.address = self._server = self._serve_task = None


def _build_date() -> dict[str, str]:
    return {"date": formatdate(usegmt=True)}


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exits = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait until the server is to end. uvicorn's own loop wakes ten times a second, to renew the `Date`."""
        await self._exits.wait()

    def exit_soon(self) -> None:
        self.should_exit = True
        self._exits.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals stay with the process

    def abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if transport := getattr(connection, "transport", None):
                transport.abort()


async def _open_listener(listen: Listen) -> socket.socket:
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        # Prefer IPv4: most clients of `localhost` connect to 127.0.0.1.
        family, kind, protocol, _, address = min(addresses, key=lambda one: one[0] != socket.AF_INET)
        with ExitStack() as cleanup:
            listener = cleanup.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":  # elsewhere the option would let other processes share the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # before uvicorn does, so that clients can connect as soon as the port is logged
            cleanup.pop_all()
    except OSError as error:
        problem = _FIXES.get(error.errno or 0) or f"can't be listened on: {error.strerror}; set host:port, or off"
        raise CannotStart(f"BRIDGE_HTTP_LISTEN: {listen.host}:{listen.port} {problem}") from error
    return listener
