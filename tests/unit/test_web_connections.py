"""Hostile connections: too many, half-open, slow, or with another site's name. Real sockets to a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.responses import PlainTextResponse

from task_bridge.settings import Listen
from task_bridge.web import connections
from task_bridge.web.connections import is_loopback_name
from task_bridge.web.server import WebServer

REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = WebServer(PlainTextResponse("fine"), Listen("127.0.0.1", 0))
    await server.start()
    assert server.address
    yield server.address.port
    await server.stop()


@contextlib.asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[Connection]]:
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.close()


async def ask(connection: Connection, request: bytes = REQUEST) -> int:
    """The status of the answer."""
    reader, writer = connection
    with contextlib.suppress(ConnectionError):  # a refused connection may be closed before it is written to
        writer.write(request)
        await writer.drain()
    async with asyncio.timeout(5):
        return int((await reader.readline()).split()[1])


async def test_one_connection_too_many_gets_503_and_a_closed_one_makes_room(port: int) -> None:
    async with connected(port, connections.MAX_CONNECTIONS) as opened:
        assert await ask(opened[-1]) == 200
        async with connected(port, 1) as (refused,):
            assert await ask(refused) == 503
            assert await refused[0].read() != b""  # and then its end
        opened[0][1].close()
        async with asyncio.timeout(5):
            while True:
                async with connected(port, 1) as (next_one,):
                    if await ask(next_one) == 200:
                        break


async def test_hundreds_of_half_open_connections_leave_the_others_in_peace(port: int) -> None:
    async with connected(port, 200) as good:
        half_open = [asyncio.open_connection("127.0.0.1", port) for _ in range(700)]
        opened = [one for one in await asyncio.gather(*half_open, return_exceptions=True) if isinstance(one, tuple)]
        for _, writer in opened:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: local")
        assert [await ask(one) for one in good] == [200] * len(good)
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_headers_that_do_not_come_in_time_end_the_connection(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.3)
    async with connected(port, 1) as ((reader, writer),):
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                assert await reader.read() == b""


async def test_headers_in_drops_have_no_more_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.3)
    async with connected(port, 1) as ((reader, writer),):
        writer.write(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                while not reader.at_eof():
                    writer.write(b"X: y\r\n")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.05)


async def test_a_second_request_begun_on_a_kept_connection_has_a_deadline_too(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.3)
    async with connected(port, 1) as (connection,):
        assert await ask(connection) == 200
        reader, writer = connection
        writer.write(b"GET / HT")
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                await reader.read()


async def test_an_answer_that_takes_longer_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.05)
    released = asyncio.Event()

    async def slow(scope: object, receive: object, send: object) -> None:
        await released.wait()
        await PlainTextResponse("late")(scope, receive, send)  # type: ignore[arg-type]

    server = WebServer(slow, Listen("127.0.0.1", 0))
    await server.start()
    assert server.address
    async with connected(server.address.port, 1) as (connection,):
        asyncio.get_running_loop().call_later(0.3, released.set)
        assert await ask(connection) == 200
    await server.stop()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("LOCALHOST.", 200),
        ("board.localhost", 200),
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_on_loopback_only_names_of_the_loopback_are_answered(port: int, host: str, status: int) -> None:
    async with connected(port, 1) as (connection,):
        assert await ask(connection, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == status


async def test_elsewhere_any_name_is_answered() -> None:
    server = WebServer(PlainTextResponse("fine"), Listen("0.0.0.0", 0))  # noqa: S104 - as in a container
    await server.start()
    assert server.address
    async with connected(server.address.port, 1) as (connection,):
        assert await ask(connection, b"GET / HTTP/1.1\r\nHost: bridge.example\r\n\r\n") == 200
    await server.stop()


def test_addresses_and_names_of_the_loopback() -> None:
    assert is_loopback_name("127.9.9.9")
    assert is_loopback_name("::1")
    assert not is_loopback_name("0.0.0.0")  # noqa: S104
    assert not is_loopback_name("2001:db8::1")


async def test_an_answer_has_the_date_of_its_second(port: int) -> None:
    async def read_date() -> bytes:
        async with connected(port, 1) as ((reader, writer),):
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
        return next(line for line in head.split(b"\r\n") if line.startswith(b"date: "))

    first = await read_date()
    async with asyncio.timeout(5):
        while True:
            if await read_date() != first:
                break
