"""Why a vCenter doesn't answer: said by what failed, over http and over TLS alike."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from credentials import Authority
from receiver import abort
from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.metrics import Metrics
from task_bridge.vcenter import http as vcenter_http
from task_bridge.vcenter.http import AmbiguousFailure, NoAnswer, VCenterHttp
from vcenter_lab import Given, tls

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
BEGIN = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"
IN_TIME = "doesn't answer in time"
CLOSED = "closed the connection before the answer was complete"


async def hang(_: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def hang_in_the_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(BEGIN)
    await asyncio.sleep(60)


async def close(_: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    pass


async def close_in_the_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(BEGIN)


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    at_once = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()


async def speak_something_else(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")


async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE)


@asynccontextmanager
async def served(does: Answer, context: ssl.SSLContext | None, *, reads: bool = True) -> AsyncIterator[int]:
    """The port of a server that reads a request, or not even that, and does this."""
    writers: list[asyncio.StreamWriter] = []
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if reads:
                await reader.readuntil(b"\r\n\r\n")
            await does(reader, writer)
        writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.ensure_future(handle(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        for writer in writers:
            abort(writer)
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        server.close()
        await server.wait_closed()


async def failure(url: str, **given: Any) -> tuple[VCenterUnavailable, VCenterHttp]:
    """What a request raises, and what it was sent by, closed by now."""
    http = VCenterHttp(Given(url, **{"timeout_s": 0.2, **given}), Metrics())
    with pytest.raises(VCenterUnavailable) as raised:
        await http.request("cancel", "POST", "/x", {})
    client = http._current
    await http.close()
    assert client is None or client.is_stale == ("certificate" in str(raised.value))
    return raised.value, http


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("does", "words", "kind"),
    [
        (hang, IN_TIME, NoAnswer),
        (hang_in_the_body, IN_TIME, NoAnswer),
        (close, CLOSED, AmbiguousFailure),
        (close_in_the_body, CLOSED, AmbiguousFailure),
        (reset, CLOSED, AmbiguousFailure),
        (speak_something_else, "doesn't answer in HTTP. Check the URL's scheme and port", AmbiguousFailure),
    ],
)
async def test_the_reason_is_what_failed_last(scheme: str, does: Answer, words: str, kind: type[Exception]) -> None:
    async with served(does, tls(scheme)) as port:
        error, _ = await failure(f"{scheme}://127.0.0.1:{port}")
    assert words in str(error)
    assert isinstance(error, kind)


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (hang, "doesn't answer the connection attempt"),
        (close, "closed the connection before TLS was set up"),
        (reset, "closed the connection before TLS was set up"),
        (answer, "doesn't speak TLS as expected"),
    ],
)
async def test_a_port_without_tls_is_told_by_what_it_does_instead(
    does: Answer, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vcenter_http, "CONNECT_TIMEOUT_S", 0.3)
    async with served(does, None, reads=False) as port:
        error, _ = await failure(f"https://127.0.0.1:{port}")
    assert words in str(error)
    assert not isinstance(error, AmbiguousFailure)


async def test_a_url_without_tls_for_a_port_with_tls_is_told_the_way_out() -> None:
    async with served(answer, tls("https")) as port:
        error, _ = await failure(f"http://127.0.0.1:{port}")
    assert "begin the URL with https" in str(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("host", "words"),
    [("127.0.0.1:9", "refuses the connection"), ("nowhere.invalid", "has a host name that doesn't resolve")],
)
async def test_a_vcenter_that_is_not_there_is_told_as_that(scheme: str, host: str, words: str) -> None:
    error, _ = await failure(f"{scheme}://{host}")
    assert words in str(error)
    assert not isinstance(error, AmbiguousFailure)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there_is_not_taken_for_vcenter(scheme: str) -> None:
    error, _ = await failure(f"{scheme}://vcenter.invalid", proxy="http://127.0.0.1:9")
    assert "can't be reached through the proxy" in str(error)
    assert "PROXY" in str(error)


async def test_a_proxy_that_lets_nobody_through_is_told() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")

    async with served(refuse, None) as port:
        error, _ = await failure("https://vcenter.invalid", proxy=f"http://127.0.0.1:{port}")
    assert "can't be reached through the proxy: 502 Bad Gateway" in str(error)


@pytest.mark.parametrize(("host", "words"), [("127.0.0.1", "isn't trusted"), ("other.test", "for another host name")])
async def test_a_certificate_is_told_by_its_fault(tmp_path: Path, host: str, words: str) -> None:
    authority = Authority(tmp_path)
    trusted = {} if words == "isn't trusted" else {"ca_file": authority.file}
    async with served(answer, authority.server(host)) as port:
        error, _ = await failure(f"https://127.0.0.1:{port}", **trusted)
    assert words in str(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_timeout_closes_no_connection_but_its_own(scheme: str) -> None:
    """Two connections are kept; one of them isn't answered in time. The other goes on."""
    connections: list[asyncio.StreamWriter] = []
    is_slow = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if len(connections) == 1:
            is_slow.set()
            await asyncio.sleep(60)
        while True:
            writer.write(WHOLE)
            await reader.readuntil(b"\r\n\r\n")

    async with served(serve, tls(scheme)) as port:
        http = VCenterHttp(Given(f"{scheme}://127.0.0.1:{port}", timeout_s=0.3), Metrics())
        slow = asyncio.create_task(http.request("get", "GET", "/slow", {}))
        try:
            await is_slow.wait()
            assert (await http.request("get", "GET", "/quick", {})).ok
            with pytest.raises(NoAnswer, match=IN_TIME):
                await slow
            assert (await http.request("get", "GET", "/quick", {})).ok
            assert len(connections) == 2
        finally:
            slow.cancel()
            await http.close()
