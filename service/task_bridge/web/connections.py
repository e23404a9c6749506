"""Limits on HTTP connections: how many there are, how long headers may take, and which hosts a loopback server has.

uvicorn (0.54) has neither a deadline for headers nor a limit before it has parsed a request, so half-open connections
could take all file descriptors of the process: 2,000 of them did.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

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
_UNREACHABLE_MS = 60_000
"""Time after which a connection ends whose other side takes nothing: it is gone, or reads no more."""

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 10\r\n"
    b"Connection: close\r\nContent-Length: 39\r\n\r\nToo many connections; try again later.\n"
)


class LimitedProtocol(H11Protocol):
    """A connection that is closed if its headers are late, and refused with 503 above MAX_CONNECTIONS.

    With a `certificate` it speaks TLS. uvicorn's own TLS would count a connection only after its handshake, and have
    the certificate of the start.
    """

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, certificate: ServerCertificate | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._certificate = certificate
        self._early_data = bytearray()
        """Received right behind the handshake, before the task that waits for it went on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._certificate is None or transport.get_extra_info("sslcontext") is not None:
            self._begin(transport)
        elif len(self.connections) + len(self._certificate.handshakes) >= MAX_CONNECTIONS + _HANDSHAKES:
            transport.abort()
        else:
            transport.pause_reading()
            handshake = asyncio.create_task(self._start_tls(transport, self._certificate))
            self._certificate.handshakes.add(handshake)
            handshake.add_done_callback(self._certificate.handshakes.discard)

    async def _start_tls(self, transport: asyncio.Transport, certificate: ServerCertificate) -> None:
        try:
            encrypted = await self.loop.start_tls(
                transport, self, certificate.context(), server_side=True, ssl_handshake_timeout=HEADERS_S
            )
        except OSError:  # no TLS, or too late
            transport.abort()
            return
        if encrypted is None or encrypted.is_closing():
            return
        self._begin(encrypted)
        if self._early_data:
            self.data_received(bytes(self._early_data))
            self._early_data.clear()

    def _begin(self, transport: asyncio.Transport) -> None:
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
        elif self._certificate is not None:
            self._early_data += data

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
