"""Who is let in over HTTP, how often, and what a changed file of tokens means. No network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection
from structlog.testing import capture_logs

from http_api import line, write_tokens
from task_bridge.domain.errors import Refused
from task_bridge.domain.event_query import StoredEvent
from task_bridge.web.event_stream import format_event
from task_bridge.web.gate import MAX_STREAMS, MAX_STREAMS_OF_TOKEN, Gate, TokensFile, is_private
from task_bridge.web.rates import RequestRate


def connection(
    name: str = "all", host: str | None = "127.0.0.1", scheme: str = "http", *more: tuple[str, str]
) -> HTTPConnection:
    headers = [(b"authorization", f"Bearer {name}-secret".encode())]
    headers += [(key.encode(), value.encode()) for key, value in more]
    return HTTPConnection(
        {"type": "http", "scheme": scheme, "client": host and (host, 4711), "headers": headers, "path": "/v1/list"}
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tokens(tmp_path)


def refusal(gate: Gate, asked: HTTPConnection) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        gate.admit(asked)
    return refused.value.status, refused.value.message


@pytest.mark.parametrize(
    ("host", "scheme", "private"),
    [
        ("127.0.0.1", "http", True),
        ("127.9.9.9", "http", True),
        ("::1", "http", True),
        ("::ffff:127.0.0.1", "http", True),
        ("10.0.0.1", "http", False),
        ("::ffff:10.0.0.1", "http", False),
        ("2001:db8::1", "http", False),
        ("testclient", "http", False),
        (None, "http", False),
        ("10.0.0.1", "https", True),
    ],
)
def test_a_token_comes_encrypted_or_from_this_host(file: Path, host: str | None, scheme: str, private: bool) -> None:
    asked = connection("all", host, scheme)
    assert is_private(asked) is private
    if private:
        assert Gate(TokensFile(file), insecure=False).admit(asked).name == "all"
    else:
        status, message = refusal(Gate(TokensFile(file), insecure=False), asked)
        assert status == 403
        assert "BRIDGE_HTTP_INSECURE_TOKENS" in message
        # Whether the token is right isn't said.
        assert refusal(Gate(TokensFile(file), insecure=False), connection("nobody", host, scheme)) == (status, message)
    assert Gate(TokensFile(file), insecure=True).admit(asked).name == "all"


def test_two_authorizations_are_refused(file: Path) -> None:
    gate = Gate(TokensFile(file), insecure=False)
    for second in ("Bearer all-secret", "Bearer nobody", ""):
        assert refusal(gate, connection("all", "::1", "http", ("authorization", second)))[0] == 400


def test_twenty_requests_a_second_and_token(file: Path) -> None:
    clock = Clock()
    gate = Gate(TokensFile(file), insecure=False, clock=clock)
    for _ in range(20):
        gate.admit(connection())
        clock.now += 0.01
    with pytest.raises(Refused) as refused:
        gate.admit(connection())
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})  # type: ignore[attr-defined]
    assert gate.admit(connection("reader")).name == "reader"
    clock.now += 1.0
    gate.admit(connection())


def test_a_rate_is_kept_within_any_second() -> None:
    rate, accepted = RequestRate(3), []
    for step in range(1000):
        now = step * 0.037
        if rate.take(now) == 0:
            accepted.append(now)
    assert all(later - earlier >= 1.0 for earlier, later in zip(accepted, accepted[3:], strict=False))
    assert len(accepted) > 3 * 36 - 6
    assert RequestRate(1).take(5.0) == 0
    waiting = RequestRate(1)
    waiting.take(5.0)
    assert waiting.take(5.25) == pytest.approx(0.75)


def test_streams_are_counted_by_token_and_in_all(file: Path) -> None:
    gate = Gate(TokensFile(file), insecure=False)
    token = gate.admit(connection())
    held = [gate.stream(token) for _ in range(MAX_STREAMS_OF_TOKEN)]
    for one in held:
        one.__enter__()
    with pytest.raises(Refused, match="This token has 10 streams"), gate.stream(token):
        pass
    others = [gate.stream(token._replace(digest=str(number // 9))) for number in range(MAX_STREAMS - len(held))]
    for one in others:
        one.__enter__()
    with pytest.raises(Refused, match="100 streams of events are open"), gate.stream(token._replace(digest="new")):
        pass
    held.pop().__exit__(None, None, None)
    with gate.stream(token._replace(digest="new")):
        pass


def test_a_changed_file_is_in_force_at_once(file: Path) -> None:
    gate = Gate(TokensFile(file), insecure=False)
    token = gate.admit(connection())
    assert gate.is_current(token)
    file.write_text(line("all", "list") + line("new"))
    assert not gate.is_current(token)
    assert gate.admit(connection()).may("watch") is False
    assert gate.admit(connection("new")).name == "new"
    assert refusal(gate, connection("reader"))[0] == 401
    file.write_text("")
    assert refusal(gate, connection())[0] == 401


def test_mistakes_are_logged_with_their_line_once_and_never_with_a_hash(file: Path) -> None:
    with capture_logs() as logs:
        tokens = TokensFile(file)
        tokens.read()
        file.write_text(line("all") + "\n" + line("b/d") + line("good"))
        for _ in range(3):
            assert [token.name for token in tokens.read()] == ["all", "good"]
    assert [(entry["event"], entry.get("line")) for entry in logs] == [
        ("tokens_read", None),
        ("token_line_refused", 3),
        ("tokens_read", None),
    ]
    assert line("b/d").split()[1] not in repr(logs)


def test_the_last_tokens_stay_in_force_while_the_file_is_missing(file: Path) -> None:
    with capture_logs() as logs:
        tokens = TokensFile(file)
        before = tokens.read()
        moved = file.rename(file.with_suffix(".old"))
        assert [tokens.read(), tokens.read()] == [before, before]
        os.replace(moved, file)
        assert tokens.read() == before
    events = [entry["event"] for entry in logs]
    assert events.count("tokens_unreadable") == 1
    assert events[-1] == "tokens_readable_again"


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b'{"a":1}', b'data: {"a":1}\n'),
        (b"a\nid: 9\r\n\r\nevent: x\rdata: y", b"data: a\ndata: id: 9\ndata: \ndata: event: x\ndata: data: y\n"),
        (b"", b"data: \n"),
    ],
)
def test_the_body_of_an_event_stays_in_its_message(body: bytes, lines: bytes) -> None:
    assert format_event(StoredEvent(7, body)) == b"id: 7\n" + lines + b"\n"
