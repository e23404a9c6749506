"""The connections to a vCenter, on the event loop's own transports.

httpcore's own connections go through anyio, which takes a third of a request's CPU over TLS (decision 31).
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, Self, cast

import aiohappyeyeballs
import httpcore
import httpx

_NEXT_ADDRESS_S = 0.25
"""After so long without an answer the host's next address is tried beside (RFC 8305)."""
_UNREAD_MAX_BYTES = 1024 * 1024
"""While more than this waits to be read, the connection takes nothing from the network."""
_HELD_BACK_MAX_BYTES = 4096
"""So much is held back until more is written or something is read: headers go together with their body."""


def use_own_connections(transport: httpx.AsyncHTTPTransport) -> None:
    """Let the transport make its connections here. httpx has no argument for it; httpcore's pool has."""
    transport._pool._network_backend = _Backend()


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> _Connection:
        """Connect to the first address of `host` that answers. Raises httpcore.ConnectTimeout or ConnectError.

        The bridge sets no local address and no options.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await _find_addresses(host, port)
                return _Connection(
                    await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S)
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for some addresses
            raise httpcore.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _find_addresses(host: str, port: int) -> list[Any]:
    ascii_host = host.encode("ascii")  # a text would be encoded by IDNA, which raises UnicodeError for some
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(ascii_host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


class _Connection(httpcore.AsyncNetworkStream, asyncio.Protocol):
    """One connection as httpcore uses it: what has arrived is kept until it is read.

    There is no transport before httpcore begins TLS or writes, since uvloop's reads at once, and what a server says
    first may be TLS's.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._transport: asyncio.Transport | None = None
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._unsent = b""
        self._is_at_end = False
        self._is_lost = False
        self._error: Exception | None = None
        self._is_paused = False
        self._is_full = False
        self._has_changed = asyncio.Event()

    # For httpcore

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrived in one piece, nothing at the end. It may be more than `max_bytes`, which h11 takes too.

        Raises httpcore.ReadTimeout or ReadError.
        """
        transport = await self._open()
        self._send(transport)
        try:
            while not self._unread and not self._is_at_end:
                if self._is_paused:
                    self._is_paused = False
                    transport.resume_reading()
                await self._wait(timeout)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        if not self._unread:
            if self._error is not None:
                raise httpcore.ReadError(str(self._error)) from self._error
            return b""
        piece = self._unread.popleft()
        self._unread_bytes -= len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes, a few of them together with the next ones or once something is read.

        Raises httpcore.WriteTimeout or WriteError.
        """
        transport = await self._open()
        if transport.is_closing():
            raise httpcore.WriteError(str(self._error or "the connection is closed")) from self._error
        self._unsent += buffer
        if len(self._unsent) > _HELD_BACK_MAX_BYTES:
            self._send(transport)
        try:
            while self._is_full and not self._is_at_end:
                await self._wait(timeout)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error

    def _send(self, transport: asyncio.Transport) -> None:
        if self._unsent:
            transport.write(self._unsent)
            self._unsent = b""

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Self:
        """Go on over TLS. Raises httpcore.ConnectTimeout or ConnectError."""
        loop, transport = asyncio.get_running_loop(), self._transport
        try:
            async with asyncio.timeout(timeout):
                if transport is None:
                    await loop.create_connection(
                        lambda: self, sock=self._socket, ssl=ssl_context, server_hostname=server_hostname
                    )
                else:  # a proxy has connected it
                    self._raise_if_closed()
                    self._transport = await loop.start_tls(
                        transport, self, ssl_context, server_hostname=server_hostname
                    )
                    self._raise_if_closed()
        except TimeoutError as error:
            self._abort()
            raise httpcore.ConnectTimeout(str(error)) from error
        except Exception as error:  # ssl.SSLError; if a proxy closes amid TLS in TLS, also TypeError (asyncio of 3.11)
            self._abort()
            raise httpcore.ConnectError(str(error)) from error
        except asyncio.CancelledError:
            self._abort()
            raise
        return self

    def _raise_if_closed(self) -> None:
        if self._is_at_end or self._transport is None:
            raise ConnectionResetError("the connection was closed")

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # httpcore asks between requests: vCenter has closed the connection
            return bool(self._unread) or self._is_at_end or self._has_input()
        return self._transport.get_extra_info(info) if self._transport else None

    def _has_input(self) -> bool:
        """Return whether the network has what the event loop hasn't read yet, such as the end of the connection."""
        if self._transport is None:
            return False
        if self._transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.close()  # over TLS this says goodbye
            await asyncio.sleep(0)
        self._abort()

    async def _open(self) -> asyncio.Transport:
        """Return the transport, and create it without TLS if there is none."""
        if self._transport is None:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=self._socket)
            assert self._transport is not None  # noqa: S101 - `connection_made` was called
        return self._transport

    def _abort(self) -> None:
        if self._transport is None:
            self._socket.close()
        elif not self._is_lost:  # asyncio's transport raises AttributeError then, if it was closed while it sent
            self._transport.abort()

    async def _wait(self, timeout: float | None) -> None:
        """Wait for the next change. Raises TimeoutError."""
        self._has_changed.clear()
        async with asyncio.timeout(timeout):
            await self._has_changed.wait()

    # For the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, but not its class

    def data_received(self, data: bytes) -> None:
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _UNREAD_MAX_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._has_changed.set()

    def eof_received(self) -> None:
        self._is_at_end = True
        self._has_changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_at_end, self._is_lost, self._error = True, True, error
        self._has_changed.set()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._has_changed.set()
