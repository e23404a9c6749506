"""A TCP proxy between a bridge and its nats-servers that stalls, cuts, or swallows JetStream's confirmations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

_READ_BYTES = 65_536


class Proxy:
    """Listens on a free port of loopback. `upstreams` names the ports that can be tried now, best first.

    While it is stalled nothing passes in either direction, and what had been sent passes later, even from a
    connection that its client has given up: a publish may arrive long after it was tried again.
    """

    def __init__(self, upstreams: Callable[[], Sequence[int]]) -> None:
        self.port = 0
        self.swallowed = 0
        self._upstreams = upstreams
        self._flows = asyncio.Event()
        self._flows.set()
        self._swallows: dict[bytes, int] = {}
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._linked, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self.resume()
        if self._server is not None:
            self._server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def stall(self) -> None:
        """From now on nothing passes, and no connection is closed."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """Ends all connections."""
        for writers in self._links.values():
            for writer in writers:
                writer.transport.abort()

    def swallow(self, stream: str, count: int) -> None:
        """The next `count` confirmations of publishes into `stream` don't arrive."""
        self._swallows[f'{{"stream":"{stream}"'.encode()] = count

    async def _linked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links[link] = [writer]
        try:
            await self._flows.wait()
            server_reader, server_writer = await self._connected()
            self._links[link].append(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server_writer))
                group.create_task(self._pump(server_reader, writer, Frames(self._is_swallowed)))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # ends with its connections, or with the proxy; a handler's cancellation concerns nobody else
        finally:
            for end in self._links.pop(link):
                end.close()  # what was passed on still arrives

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for port in self._upstreams():
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        raise ConnectionRefusedError

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, frames: Frames | None = None
    ) -> None:
        """Passes on what comes; a side that ends ends the other, after what it had sent."""
        while data := await source.read(_READ_BYTES):
            await self._flows.wait()
            sink.write(b"".join(frames.of(data)) if frames else data)
            await sink.drain()
        await self._flows.wait()
        raise ConnectionResetError

    def _is_swallowed(self, payload: bytes) -> bool:
        for beginning, left in self._swallows.items():
            if left and payload.startswith(beginning):
                self._swallows[beginning] -= 1
                self.swallowed += 1
                return True
        return False


class Frames:
    """What a nats-server says, in whole protocol messages, without the messages that `drops` their payload."""

    def __init__(self, drops: Callable[[bytes], bool]) -> None:
        self._drops = drops
        self._rest = b""

    def of(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete with `data`."""
        self._rest += data
        while (end := self._rest.find(b"\r\n") + 2) > 1:
            verb, *words = self._rest[: end - 2].split(b" ")
            is_message = verb in (b"MSG", b"HMSG")
            length = end + (int(words[-1]) + 2 if is_message else 0)
            if len(self._rest) < length:
                return
            frame, self._rest = self._rest[:length], self._rest[length:]
            if not (is_message and self._drops(frame[end:-2])):
                yield frame
