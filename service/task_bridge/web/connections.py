"""Limits on HTTP connections: how many there are, how long headers may take, and which hosts a loopback server has.

uvicorn (0.54) has neither a deadline for headers nor a limit before it has parsed a request, so half-open connections
could take all file descriptors of the process: 2,000 of them did.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection

import h11
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .tls import ServerCertificate

MAX_CONNECTIONS = 256
HEADERS_S = 10.0
"""Time for the headers of a request, counted from the connection or from the end of the answer before."""

_HANDSHAKES = 16
"""Connections beyond MAX_CONNECTIONS that may do a TLS handshake, to be answered 503."""
_ACCEPT_PAUSE_S = 0.1
_UNREACHABLE_MS = 60_000
"""Time after which a connection ends whose other side takes nothing: it is gone, or reads no more."""

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 10\r\n"
    b"Connection: close\r\nContent-Length: 39\r\n\r\nToo many connections; try again later.\n"
)


class LimitedProtocol(H11Protocol):
    """A connection that is closed if its headers are late, and refused with 503 above MAX_CONNECTIONS."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        _limit_silence(transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = transport
            transport.write(_REFUSAL)
            transport.close()
            return
        super().connection_made(transport)
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self in self.connections:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self in self.connections:
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._update_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_deadline()

    def send_400_response(self, msg: str) -> None:
        """Refuse what isn't HTTP. uvicorn (0.54) fails if an answer has begun, and if one begins afterwards."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _update_deadline(self) -> None:
        """Keep a deadline as long as no request is being answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S, self.transport.abort)


async def accept_tls(
    listener: socket.socket,
    create_protocol: Callable[[], LimitedProtocol],
    connections: Collection[object],
    certificate: ServerCertificate,
) -> None:
    """Accept connections that speak TLS, without end.

    uvicorn's own TLS counts a connection only after its handshake, and keeps the certificate of the start.
    """
    loop = asyncio.get_running_loop()
    handshakes: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no file descriptor is free
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if len(connections) + len(handshakes) >= MAX_CONNECTIONS + _HANDSHAKES:
                connection.close()
                continue
            handshake = asyncio.create_task(_start_tls(connection, create_protocol, certificate))
            handshakes.add(handshake)
            handshake.add_done_callback(handshakes.discard)
    finally:
        for handshake in handshakes:
            handshake.cancel()
        listener.close()


async def _start_tls(
    connection: socket.socket, create_protocol: Callable[[], LimitedProtocol], certificate: ServerCertificate
) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(
            create_protocol, connection, ssl=certificate.context(), ssl_handshake_timeout=HEADERS_S
        )
    except OSError:  # no TLS, or too late
        connection.close()


def _limit_silence(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREACHABLE_MS)


class LoopbackHosts:
    """Answers 421 to requests whose `Host` isn't a name of this machine's loopback.

    A web page whose name resolves to 127.0.0.1 (DNS rebinding) could otherwise read a server that only listens there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host")
            if host is not None and not is_loopback_name(host):
                app = PlainTextResponse("This server only answers for localhost; set the Host header to it.\n", 421)
        await app(scope, receive, send)


def is_loopback_name(host: str) -> bool:
    """Return whether a `Host` header (or an address) names the loopback: `localhost:8080`, `[::1]`, `127.0.0.1`."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
