"""A target of deliveries that answers everything a target can, and notes all it got."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple


class Delivered(NamedTuple):
    """A request as it came. Times are monotonic."""

    headers: dict[str, str]
    body: bytes
    began: float
    ended: float
    status: int

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]


class Reply(NamedTuple):
    """What a target does with a request. `status` 0 resets the connection, after the request was read."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    body: bytes = b"ok"


class Receiver:
    """Answers each request as `decide` says, by default with 200."""

    def __init__(self) -> None:
        self.got: list[Delivered] = []
        self.open = 0
        self.decide: Callable[[dict[str, str], bytes], Reply] = lambda _headers, _body: Reply()
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook?token=query-secret"

    def delivered(self) -> list[Delivered]:
        return [one for one in self.got if 200 <= one.status < 300]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(reader, writer):
                pass

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")[1:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        began = time.monotonic()
        self.open += 1
        try:
            reply = self.decide(headers, body)
            await asyncio.sleep(reply.delay_s)
            self.got.append(Delivered(headers, body, began, time.monotonic(), reply.status))
            if reply.status == 0:
                writer.transport.abort()
                return False
            writer.write(f"HTTP/1.1 {reply.status} Made up\r\nContent-Length: {len(reply.body)}\r\n".encode())
            for name, value in reply.headers:
                writer.write(f"{name}: {value}\r\n".encode())
            writer.write(b"\r\n" + reply.body)
            await writer.drain()
        finally:
            self.open -= 1
        return True


@asynccontextmanager
async def receiving(receiver: Receiver, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Listens on the receiver's port, the same each time."""
    async with listening(receiver.serve, port=receiver.port, tls=tls) as receiver.port:
        receiver.scheme = "https" if tls else "http"
        yield receiver


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Listens, and yields the port. At the end each connection is reset, whatever it waits for."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await answer(reader, writer)
        except asyncio.CancelledError:  # asyncio's server would log it
            pass
        finally:
            abort(writer)
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls, limit=2**22)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


def check_order(receiver: Receiver) -> None:
    """No two requests of a task at once, and none of an earlier event after a later one was delivered."""
    ended: dict[str, float] = {}
    highest: dict[str, int] = {}
    for one in sorted(receiver.got, key=lambda one: one.began):
        data = one.json["data"]
        assert one.began >= ended.get(data["task"], 0.0), f"two requests at once of {data['task']}"
        assert data["sequence"] >= highest.get(data["task"], 0), f"{one.event_id} came after a later event"
        ended[data["task"]] = one.ended
        highest[data["task"]] = data["sequence"]


def abort(writer: asyncio.StreamWriter) -> None:
    """Resets the connection, unless it has ended."""
    # asyncio's transport (3.13) raises AttributeError if it was closed while it sent, and has sent all since.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()
