"""A connection to nats-server that sends bytes as they are, as no client library would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class MessageRefused(Exception):  # noqa: N818 - says what happened
    """nats-server refused a message, and kept the connection."""


class Raw:
    """One connection, which nats-server must keep."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, line: bytes, payload: bytes) -> None:
        """Send one message and wait until nats-server has taken it. Raises MessageRefused."""
        self._writer.write(line + b"\r\n" + payload + b"\r\nPING\r\n")
        errors: list[bytes] = []
        async with asyncio.timeout(5):
            while b"PONG" not in (answer := await self._reader.readline()):
                assert answer, f"nats-server closed the connection: {errors}"
                errors += [answer] if answer.startswith(b"-ERR") else []
        if errors:
            raise MessageRefused(errors)

    async def publish(self, subject: bytes, headers: bytes | None, body: bytes) -> None:
        """Send a message, with a header block unless it is None. `subject` may have a reply subject behind it."""
        if headers is None:
            await self.send(b"PUB " + subject + b" %d" % len(body), body)
            return
        sizes = b"%d %d" % (len(headers), len(headers) + len(body))
        await self.send(b"HPUB " + subject + b" " + sizes, headers + body)


@contextlib.asynccontextmanager
async def raw_connection(url: str) -> AsyncIterator[Raw]:
    host, port = url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n')
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
