"""Connections to a vCenter on both event loops: what a server sends, and what it fails to, over TCP and TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import uvloop

from credentials import Authority
from receiver import abort
from task_bridge.tls import create_client_context
from task_bridge.vcenter import network
from task_bridge.vcenter.network import use_own_connections

Run = Callable[[Coroutine[Any, Any, None]], None]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WAITING = {"timeout": {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": 5.0}}
IMPATIENT = {"timeout": {"connect": 5.0, "read": 0.05, "write": 0.05, "pool": 5.0}}


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


@asynccontextmanager
async def server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that is served like this."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in writers:
            abort(writer)


@asynccontextmanager
async def transport(trusted: Path | None = None) -> AsyncIterator[httpx.AsyncHTTPTransport]:
    context = create_client_context(trusted) if trusted else True
    made = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=httpx.Limits(max_connections=2))
    use_own_connections(made)
    async with made:
        yield made


async def post(
    made: httpx.AsyncHTTPTransport, url: str, content: bytes = b"", extensions: dict[str, Any] = WAITING
) -> bytes:
    request = httpx.Request("POST", url, content=content, extensions=extensions)
    response = await made.handle_async_request(request)
    try:
        return await response.aread()
    finally:
        await response.aclose()


def has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return await reader.readexactly(length)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its body."""
    while True:
        body = await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


@pytest.mark.parametrize("with_tls", [False, True], ids=["TCP", "TLS"])
def test_a_connection_serves_request_after_request_of_any_size(run: Run, with_tls: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path) if with_tls else None

    async def main() -> None:
        tls, trusted = (authority.server(), authority.file) if authority else (None, None)
        async with server(echo, tls) as port, transport(trusted) as made:
            url = f"http{'s' if with_tls else ''}://127.0.0.1:{port}/"
            for size in (0, 1, 300_000, 8_000_000, 5):
                body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
                assert await post(made, url, body) == body
            pool = made._pool
            assert isinstance(pool, httpcore.AsyncConnectionPool)
            assert len(pool.connections) == 1

    run(main())


def test_headers_and_body_of_a_request_leave_in_one_piece(run: Run) -> None:
    received: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            received.append(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def main() -> None:
        async with transport() as made:
            await post(made, f"http://127.0.0.1:{listening.getsockname()[1]}/", b"x" * 10_000)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server_thread = threading.Thread(target=serve, args=(listening,), daemon=True)  # beside the event loop
        server_thread.start()
        run(main())
        server_thread.join(10)
    assert received[0].endswith(b"\r\n\r\n" + b"x" * 10_000)


def test_a_connection_that_was_closed_while_it_sent_can_be_closed_again(run: Run) -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def main() -> None:
        async with server(serve) as port:
            connection = network._Connection(socket.create_connection(("127.0.0.1", port)))
            connection._socket.setblocking(False)
            opened = await connection._open()
            opened.write(bytes(20_000_000))
            opened.close()
            while not connection._is_at_end:
                await connection._wait(20)
            await connection.aclose()

    run(main())


def test_what_is_not_read_is_not_taken_from_the_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_max, is_paused = 0, asyncio.Event()
    taken = network._Connection.data_received

    def data_received(connection: network._Connection, data: bytes) -> None:
        nonlocal kept_max
        taken(connection, data)
        kept_max = max(kept_max, connection._unread_bytes)
        if connection._is_paused:
            is_paused.set()

    monkeypatch.setattr(network._Connection, "data_received", data_received)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64000000\r\n\r\n")
        for _ in range(640):
            writer.write(bytes(100_000))
            await writer.drain()

    async def main() -> None:
        async with server(serve) as port, transport() as made:
            request = httpx.Request("POST", f"http://127.0.0.1:{port}/", extensions=WAITING)
            response = await made.handle_async_request(request)
            async with asyncio.timeout(20):
                await is_paused.wait()
            for _ in range(500):  # turns in which more would arrive
                await asyncio.sleep(0)
            assert len(await response.aread()) == 64_000_000
            await response.aclose()

    run(main())
    assert network._UNREAD_MAX_BYTES < kept_max < network._UNREAD_MAX_BYTES + 300_000


async def answer_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def stop_amid_the_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    connected = writer.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def take_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("serve", "content", "expected"),
    [
        (answer_nothing, b"", httpx.ReadTimeout),
        (stop_amid_the_answer, b"", httpx.RemoteProtocolError),
        (reset, b"", httpx.ReadError),
        (take_nothing, bytes(64_000_000), httpx.WriteTimeout),
    ],
    ids=["no answer", "half an answer", "a reset", "a request that isn't taken"],
)
def test_a_server_that_fails_is_told_by_the_exception(
    run: Run, serve: Serve, content: bytes, expected: type[Exception]
) -> None:
    async def main() -> None:
        async with server(serve) as port, transport() as made:
            with pytest.raises(expected):
                await post(made, f"http://127.0.0.1:{port}/", content, IMPATIENT)

    run(main())


def test_no_server_and_no_host_are_told_by_the_exception(run: Run) -> None:
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        async def main() -> None:
            async with transport() as made:
                with pytest.raises(httpx.ConnectError) as refused:
                    await post(made, f"http://127.0.0.1:{port}/")
                assert has_cause(refused.value, ConnectionRefusedError)
                for host in ("no-such-host.invalid", "vc..example", ".example", f"{'x' * 64}.example"):
                    with pytest.raises(httpx.ConnectError):
                        await post(made, f"http://{host}/")

        run(main())


def test_an_address_that_does_not_answer_does_not_hide_the_next_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first connects to a queue that is full, so its packets are dropped."""

    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(3)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            async with server(echo) as port, transport() as made:
                found = [
                    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", full.getsockname()),
                    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)),
                ]

                async def getaddrinfo(*_: object, **__: object) -> list[Any]:
                    return found

                monkeypatch.setattr(network, "_find_addresses", getaddrinfo)
                assert await post(made, "http://vcenter.test/", b"found") == b"found"
            for one in waiting:
                one.close()

    run(main())


@pytest.mark.parametrize("serve_tls", [True, False], ids=["a certificate of an unknown CA", "no TLS"])
def test_failed_tls_is_a_failed_connection_and_leaves_none_open(run: Run, serve_tls: bool, tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 not TLS\r\n")
        while await reader.read(1000):
            pass
        ended.set()

    authority = Authority(tmp_path)

    async def main() -> None:
        async with server(serve, authority.server() if serve_tls else None) as port, transport() as made:
            with pytest.raises(httpx.ConnectError) as failed:
                await post(made, f"https://127.0.0.1:{port}/")
            kind = ssl.SSLCertVerificationError if serve_tls else ssl.SSLError
            assert has_cause(failed.value, kind)
            if not serve_tls:
                async with asyncio.timeout(5):
                    await ended.wait()

    run(main())


def test_a_canceled_handshake_leaves_no_connection(run: Run) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            began.set()
        ended.set()

    async def main() -> None:
        async with server(serve) as port, transport() as made, asyncio.timeout(10):
            posting = asyncio.create_task(post(made, f"https://127.0.0.1:{port}/"))
            await began.wait()
            posting.cancel()
            await ended.wait()
            with pytest.raises(asyncio.CancelledError):
                await posting

    run(main())


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(run: Run) -> None:
    connections, closed = 0, asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()
        await writer.wait_closed()
        closed.release()

    async def main() -> None:
        async with server(serve) as port, transport() as made, asyncio.timeout(10):
            for _ in range(3):
                assert await post(made, f"http://127.0.0.1:{port}/") == b"ok"
                await closed.acquire()

    run(main())
    assert connections == 3


def test_a_connection_that_the_server_closed_while_the_loop_was_busy_is_replaced(run: Run) -> None:
    """The loop hasn't read the end when the next request looks for a connection."""
    closing, closed = threading.Event(), threading.Event()

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            connected, _ = listening.accept()
            connected.recv(65_536)
            connected.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            closing.wait(10)
            connected.close()
            closed.set()

    async def main() -> None:
        async with transport() as made:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            assert await post(made, url) == b"ok"
            closing.set()
            assert closed.wait(10)  # the loop stands still meanwhile
            assert await post(made, url) == b"ok"

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server_thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        server_thread.start()
        run(main())
        server_thread.join(10)


def test_a_proxy_over_tls_that_closes_after_its_answer_is_a_failed_connection(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async def main() -> None:
        trusted = create_client_context(authority.file)
        async with server(serve, authority.server()) as port:
            proxy = httpx.Proxy(f"https://127.0.0.1:{port}", ssl_context=trusted)
            made = httpx.AsyncHTTPTransport(verify=trusted, proxy=proxy, trust_env=False)
            use_own_connections(made)
            async with made:
                with pytest.raises(httpx.ConnectError):
                    await post(made, "https://vcenter.test/")
        assert asked[0].startswith(b"CONNECT vcenter.test:443 ")

    run(main())
