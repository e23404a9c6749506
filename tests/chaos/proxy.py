"""A TCP proxy before a server: it stalls, slows down, falls silent, cuts, or swallows JetStream's confirmations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from receiver import abort

_READ_BYTES = 65_536


class Link:
    """One connection through the proxy: the tasks and sockets of its two directions."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.is_silent = False


class Proxy:
    """Listens on a free port of loopback. `upstreams` names the ports that can be tried now, best first.

    While it is stalled nothing passes in either direction, and what had been sent passes later, even from a
    connection that its client has given up: a publish may arrive long after it was tried again. What is silent never
    speaks again, and nobody is told so: both sides believe in a connection that is half open.
    """

    def __init__(self, upstreams: Callable[[], Sequence[int]], *, is_nats: bool = True) -> None:
        self.port = 0
        self.swallowed = 0
        self.delay_s = 0.0
        self._upstreams = upstreams
        self._is_nats = is_nats
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_silent = False
        self._swallows: dict[bytes, int] = {}
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], Link] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

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

    def fall_silent(self) -> None:
        """Connections stop in the middle of what they say next; new ones are accepted and never answered."""
        self._is_silent = True
        for link in self._links.values():
            link.is_silent = True

    def answer_again(self) -> None:
        """New connections are answered from now on. The silent ones stay as they are."""
        self._is_silent = False

    def cut(self) -> None:
        """Ends all connections."""
        for link in self._links.values():
            for writer in link.writers:
                abort(writer)

    def swallow(self, stream: str, count: int) -> None:
        """The next `count` confirmations of publishes into `stream` don't arrive."""
        self._swallows[f'{{"stream":"{stream}"'.encode()] = count

    async def _linked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = self._links[task] = Link(writer)
        try:
            if self._is_silent:
                await asyncio.Event().wait()
            await self._flows.wait()
            server_reader, server_writer = await self._connected()
            link.writers.append(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, reader, server_writer))
                frames = Frames(self._is_swallowed) if self._is_nats else None
                group.create_task(self._pump(link, server_reader, writer, frames))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # ends with its connections, or with the proxy; a handler's cancellation concerns nobody else
        finally:
            del self._links[task]
            for end in link.writers:
                end.close()  # what was passed on still arrives

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for port in self._upstreams():
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        raise ConnectionRefusedError

    async def _pump(
        self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, frames: Frames | None = None
    ) -> None:
        """Passes on what comes; a side that ends ends the other, after what it had sent."""
        while data := await source.read(_READ_BYTES):
            await self._flows.wait()
            await asyncio.sleep(self.delay_s)
            if link.is_silent:
                sink.write(data[: len(data) // 2])
                await asyncio.Event().wait()
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
