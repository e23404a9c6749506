"""What the API over HTTP bears: large and slow bodies, odd framing, slow readers, TLS. Real sockets, made-up verbs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from credentials import Authority
from http_api import bearer, line, write_tokens
from task_bridge.domain.api import ApiAnswer, ApiRequest
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.domain.event_query import EventQuery, StoredEvent
from task_bridge.domain.requests import REQUEST_MAX_BYTES
from task_bridge.metrics import Metrics
from task_bridge.settings import Listen
from task_bridge.tls import create_client_context
from task_bridge.web import connections, event_stream, v1
from task_bridge.web.gate import Gate, TokensFile
from task_bridge.web.server import WebServer
from task_bridge.web.tls import ServerCertificate

MIB = 1024 * 1024


class Handler:
    """Answers how much it got."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ApiRequest]] = []

    async def answer(self, verb: str, request: ApiRequest) -> ApiAnswer:
        self.requests.append((verb, request))
        return ApiAnswer(200, b"%d" % len(request.data))


class Feed:
    """Events without end, as fast as they are taken; `taken` counts them."""

    def __init__(self) -> None:
        self.event = StoredEvent(1, b'"' + b"x" * 100_000 + b'"')
        self.taken = 0
        self.readers = 0
        self.away = False
        self.quiet = asyncio.Event()
        self.quiet.set()

    @asynccontextmanager
    async def open(
        self, query: EventQuery, permitted: frozenset[str] | None, after: int | None
    ) -> AsyncIterator[AsyncIterator[StoredEvent]]:
        if self.away:
            raise NatsUnavailable("The stream can't be read.")
        self.readers += 1
        try:
            yield self._events()
        finally:
            self.readers -= 1

    async def _events(self) -> AsyncIterator[StoredEvent]:
        while True:
            await self.quiet.wait()
            self.taken += 1
            yield self.event


class Stage:
    def __init__(self, directory: Path, certificate: ServerCertificate | None = None, host: str = "127.0.0.1") -> None:
        self.tokens = write_tokens(directory)
        self.handler, self.feed = Handler(), Feed()
        gate = Gate(TokensFile(self.tokens), insecure=False)
        self.api = v1.HttpApi(gate, self.feed, {"lab": None}, b"{}", Metrics())
        self.api.handler = self.handler
        self.server = WebServer(self.api, Listen(host, 0), certificate)

    @property
    def port(self) -> int:
        assert self.server.address
        return self.server.address.port


@asynccontextmanager
async def staged(
    directory: Path, certificate: ServerCertificate | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Stage]:
    stage = Stage(directory, certificate, host)
    await stage.server.start()
    try:
        yield stage
    finally:
        stage.api.stop()
        await stage.server.stop()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def head(*lines: str, path: str = "/v1/list", method: str = "POST", by: str = "all") -> bytes:
    fixed = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {by}-secret")
    return "\r\n".join((*fixed, *lines, "", "")).encode()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status of an answer, and everything behind its status line that comes at once."""
    async with asyncio.timeout(10):
        status = int((await reader.readline()).split()[1])
        rest = await reader.readuntil(b"\r\n\r\n")
        return status, rest.lower()


async def exchange(stage: Stage, sent: bytes) -> tuple[int, bytes]:
    async with connected(stage.port) as (reader, writer):
        writer.write(sent)
        return await read_answer(reader)


@pytest.mark.parametrize(("size", "status"), [(0, 200), (70_000, 200), (MIB, 200), (MIB + 1, 413), (5 * MIB, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_more_than_a_mebibyte_is_refused(stage: Stage, size: int, status: int, chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, size, 50_000):
            yield b"x" * min(50_000, size - start)

    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        content = parts() if chunked else b"x" * size
        url = f"http://127.0.0.1:{stage.port}/v1/list"
        answer = await http.post(url, content=content, headers=bearer("all"))
        assert answer.status_code == status, answer.text
    if status == 200:
        # More than any request may have isn't kept; the same check as over NATS refuses it.
        assert int(answer.text) == min(size, REQUEST_MAX_BYTES + 1)
    else:
        assert answer.json()["error"]["code"] == "too_large"
        assert stage.handler.requests == []


async def test_a_huge_body_is_refused_before_it_comes(stage: Stage) -> None:
    status, _ = await exchange(stage, head(f"Content-Length: {10**12}"))
    assert status == 413
    status, _ = await exchange(stage, head(f"Content-Length: {MIB + 1}", "Expect: 100-continue"))
    assert status == 413
    async with connected(stage.port) as (reader, writer):
        writer.write(head("Content-Length: 2", "Expect: 100-continue"))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
        writer.write(b"{}")
        assert (await read_answer(reader))[0] == 200


async def test_an_endless_body_is_cut_off(stage: Stage) -> None:
    async with connected(stage.port) as (reader, writer):
        writer.write(head("Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                await asyncio.wait_for(writer.drain(), 10)
        with contextlib.suppress(ConnectionError):
            assert (await asyncio.wait_for(reader.readline(), 10))[:12] in (b"HTTP/1.1 413", b"")
    assert stage.handler.requests == []


@pytest.mark.parametrize("sent", [b"", b"{", b"{" * 99])
async def test_a_body_that_comes_too_slowly_is_refused(
    stage: Stage, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v1, "BODY_S", 0.3)
    async with connected(stage.port) as (reader, writer):
        writer.write(head("Content-Length: 100") + sent)
        status, rest = await read_answer(reader)
        assert (status, b"connection: close" in rest) == (408, True)
        assert await asyncio.wait_for(reader.read(), 5)  # and the end
    assert stage.handler.requests == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n", 400),
        (head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head("Content-Length: 2", "Content-Length: 3") + b"{}", 400),
        (head("Content-Length: 2", "Content-Length: 2") + b"{}", 200),
        (head("Content-Length: -2"), 400),
        (head("Content-Length: 2x"), 400),
        (head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 400),
        (head("Transfer-Encoding: chunked") + b"x\r\n", 400),
        (head("Content-Length: 2", "Authorization: Bearer all-secret") + b"{}", 400),
        (head("Content-Length: 2", "authorization: Bearer nobody") + b"{}", 400),
        (head("Content-Length: 2", "X: a\r\n Authorization: Bearer all-secret", by="nobody") + b"{}", 401),
        (head("Content-Length: 2", by="al") + b"{}", 401),
        (head("Content-Length: 2", by="\x7f") + b"{}", 401),
        (head("Content-Length: 2", "Upgrade: websocket", "Connection: upgrade") + b"{}", 200),
        (head("Content-Length: 2", "X-Forwarded-Proto: https", by="nobody") + b"{}", 401),
        (head("Content-Length: 2").replace(b"HTTP/1.1", b"HTTP/1.0") + b"{}", 200),
        (head("Content-Length: 2").replace(b"POST /v1/list", b"POST http://localhost/v1/list") + b"{}", 404),
    ],
)
async def test_odd_headers_get_in_nobody(stage: Stage, sent: bytes, status: int) -> None:
    assert (await exchange(stage, sent))[0] == status
    assert len(stage.handler.requests) == (status == 200)


async def test_requests_behind_each_other_are_each_checked(stage: Stage) -> None:
    async with connected(stage.port) as (reader, writer):
        good, bad = head("Content-Length: 2") + b"{}", head("Content-Length: 2", by="nobody") + b"{}"
        writer.write(good + bad + good)
        found = []
        for _ in range(3):
            status, rest = await read_answer(reader)
            found.append(status)
            await reader.readexactly(int(rest.partition(b"content-length: ")[2].split()[0]))
        assert found == [200, 401, 200]


@pytest.mark.parametrize("path", ["/v1/list", "/v1/nothing", "/v1/events"])
@pytest.mark.parametrize("garbage", [b"\x00\r\n\r\n", b"2\r\n{}\r\nzz\r\n"])
async def test_what_is_no_http_behind_a_request_fails_nothing(
    stage: Stage, path: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stage.feed.quiet.clear()
    async with connected(stage.port) as (reader, writer):
        method = "GET" if path == "/v1/events" else "POST"
        chunked = () if garbage[0] == 0 else ("Transfer-Encoding: chunked",)
        writer.write(head(*chunked, path=path, method=method) + garbage)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(reader.read(), 0.5)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_reader_who_takes_nothing_costs_no_more_than_his_buffers(stage: Stage) -> None:
    async with connected(stage.port, limit=1024) as (reader, writer):
        writer.write(head(path="/v1/events", method="GET"))
        assert (await read_answer(reader))[0] == 200
        before = -1
        async with asyncio.timeout(20):
            while before != stage.feed.taken:
                before = stage.feed.taken
                await asyncio.sleep(0.3)
        assert stage.feed.taken * len(stage.feed.event.body) < 16 * MIB  # the kernel's buffers, at most
        assert stage.feed.readers == 1
    async with asyncio.timeout(10):
        while stage.feed.readers:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


async def test_a_quiet_stream_shows_that_it_is_alive_and_ends_with_its_token(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEPALIVE_S", 0.1)
    stage.feed.quiet.clear()
    async with connected(stage.port) as (reader, writer):
        writer.write(head(path="/v1/events", method="GET"))
        assert (await read_answer(reader))[0] == 200
        async with asyncio.timeout(5):
            await reader.readuntil(b"retry: 2000\n\n")
            await reader.readuntil(b":\n\n")
            stage.tokens.write_text(line("all", "watch"))
            while await reader.readline() != b"0\r\n":
                assert not reader.at_eof()
    assert stage.feed.readers == 0


async def test_streams_beyond_the_limit_are_asked_to_come_back(stage: Stage) -> None:
    stage.feed.quiet.clear()
    async with contextlib.AsyncExitStack() as opened:
        for number in range(11):
            reader, writer = await opened.enter_async_context(connected(stage.port))
            writer.write(head(path="/v1/events", method="GET"))
            status, rest = await read_answer(reader)
            assert (status, b"retry-after: 10" in rest) == ((200, False) if number < 10 else (429, True))
        assert stage.feed.readers == 10
    async with asyncio.timeout(10):
        while stage.feed.readers:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


async def test_a_stream_that_cannot_be_read_is_503_and_counts_no_longer(stage: Stage) -> None:
    stage.feed.away = True
    for _ in range(12):
        assert (await exchange(stage, head(path="/v1/events", method="GET")))[0] == 503
    stage.feed.away = False
    assert (await exchange(stage, head(path="/v1/events", method="GET")))[0] == 200


async def test_a_client_that_leaves_within_its_body_leaves_no_trace(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(stage.port) as (_, writer):
        writer.write(head("Content-Length: 100") + b"{")
        await writer.drain()
    assert (await exchange(stage, head("Content-Length: 2") + b"{}"))[0] == 200
    assert len(stage.handler.requests) == 1
    assert caplog.text == ""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serve_with(authority: Authority, name: str) -> ServerCertificate:
    pair = authority.pair(name)
    return ServerCertificate(pair.certificate, pair.key)


async def test_tls_has_the_certificate_that_the_files_have_now(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = authority.pair("first"), authority.pair("second")
    trust = create_client_context(authority.file)

    async def find_name(stage: Stage) -> str:
        async with connected(stage.port, ssl=trust) as (reader, writer):
            writer.write(head("Content-Length: 2") + b"{}")
            assert (await read_answer(reader))[0] == 200
            certificate: Any = writer.get_extra_info("peercert")
            return str(dict(part[0] for part in certificate["subject"])["commonName"])

    async with staged(tmp_path, ServerCertificate(first.certificate, first.key)) as stage:
        assert await find_name(stage) == "first"
        shutil.copy(second.certificate, first.certificate)  # half of it: the key doesn't fit
        assert await find_name(stage) == "first"
        shutil.copy(second.key, first.key)
        assert await find_name(stage) == "second"
    assert caplog.text == ""


@pytest.mark.parametrize("sent", [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"\xff" * 512])
async def test_a_handshake_that_does_not_come_in_time_ends_the_connection(
    tmp_path: Path, authority: Authority, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.5)
    async with staged(tmp_path, serve_with(authority, "tls")) as stage, connected(stage.port) as (reader, writer):
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                await reader.read()


async def test_over_tls_one_connection_too_many_gets_503_too(tmp_path: Path, authority: Authority) -> None:
    trust = create_client_context(authority.file)
    async with staged(tmp_path, serve_with(authority, "tls")) as stage, contextlib.AsyncExitStack() as opened:
        half_open = [await opened.enter_async_context(connected(stage.port)) for _ in range(60)]
        for _ in range(connections.MAX_CONNECTIONS - len(half_open)):
            await opened.enter_async_context(connected(stage.port, ssl=trust))
        reader, writer = await opened.enter_async_context(connected(stage.port, ssl=trust))
        writer.write(head("Content-Length: 2") + b"{}")
        assert (await read_answer(reader))[0] == 200
        half_open += [await opened.enter_async_context(connected(stage.port)) for _ in range(40)]
        for _, one in half_open:
            one.close()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError, IndexError):
                    async with connected(stage.port, ssl=trust) as (reader, writer):
                        writer.write(head("Content-Length: 2", by="nobody") + b"{}")
                        if (await read_answer(reader))[0] == 401:
                            break
                await asyncio.sleep(0.05)


async def test_off_the_bridge_answers_404_below_v1_only() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope: Scope = {"type": "http", "path": "/v1/watch", "method": "POST", "headers": []}
    app: tuple[Receive, Send] = (receive, send)
    await v1.refuse_all(scope, *app)
    assert sent[0]["status"] == 404
    assert "BRIDGE_HTTP_TOKENS_FILE" in json.loads(sent[1]["body"])["error"]["message"]
    assert [v1.is_api_path(path) for path in ("/v1", "/v1/", "/v1/x", "/v10", "/", "/V1")] == [
        *(True, True, True),
        *(False, False, False),
    ]
