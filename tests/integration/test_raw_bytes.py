"""Messages that no client library would send, by a raw socket: the bridge stays connected, and answers or rejects."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import pytest
from structlog.testing import capture_logs

from lab import PREFIX, Lab, until
from task_bridge.jetstream.nats_py_workarounds import accept_any_message
from task_bridge.simulator import scenarios

UNREADABLE = {
    "no NATS line": b"XX\r\n\r\n",
    "the line alone": b"NATS/1.0",
    "the line and half an end": b"NATS/1.0\r\n",
    "a space and nothing": b"NATS/1.0 ",
    "another protocol": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n",
    "zeros": b"\x00" * 20,
}
INLINE_BYTES = {
    "a status that is no text": b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    "a description that is no text": b"NATS/1.0 404 \xff\xfe\r\n\r\n",
}
"""Unreadable to the API; JetStream (2.15.1) delivers a stored message without them."""
ODD_BUT_READABLE = {
    "an inline status": b"NATS/1.0 404 No Messages\r\n\r\n",
    "a pull's end": b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 99999\r\n\r\n",
    "a consumer's end": b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    "a heartbeat": b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
    "a header named Status": b"NATS/1.0\r\nStatus: 404\r\n\r\n",
    "no colon": b"NATS/1.0\r\nno colon here\r\n\r\n",
    "names and values that are no text": b"NATS/1.0\r\n\xff\xfe: \xfd\r\ntraceparent: \xff\r\n\r\n",
    "a name in other letters": b"NATS/1.0\r\nNats-Expected-Stream2: \x00\r\n\r\n",
}
ODD_SUBJECTS = {
    "vertical tab": b"a\x0bb",
    "form feed": b"a\x0cb",
    "not UTF-8": b"a\xff\xfeb",
    "a zero": b"a\x00b",
    "a long one": b"a" * 3000,
}


class Raw:
    """A connection to nats-server that sends bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, line: bytes, payload: bytes) -> None:
        """Send one message and wait until nats-server has taken it."""
        self._writer.write(line + b"\r\n" + payload + b"\r\nPING\r\n")
        async with asyncio.timeout(5):
            while b"PONG" not in (answer := await self._reader.readline()):
                assert answer, "nats-server closed the connection"
                assert not answer.startswith(b"-ERR"), answer

    async def publish(self, subject: bytes, headers: bytes, body: bytes) -> None:
        sizes = b"%d %d" % (len(headers), len(headers) + len(body))
        await self.send(b"HPUB " + subject + b" " + sizes, headers + body)


@contextlib.asynccontextmanager
async def raw(lab: Lab) -> AsyncIterator[Raw]:
    host, port = lab.server.url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n')
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def connection_kept(lab: Lab) -> AsyncIterator[None]:
    """A bridge that serves a task before and after, and never loses its connection."""
    accept_any_message(lab.client)  # the test's own connection has the same faults
    with capture_logs() as logs:
        async with lab.bridge():
            await lab.listen()
            yield
            task = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
            await lab.publish(task)
            assert (await lab.ended(task))["outcome"] == "succeeded"
    assert [log["event"] for log in logs if log["event"] in ("nats_away", "nats_back")] == []
    assert not [log for log in logs if log["event"] == "nats_connected"][1:]


def rejections(lab: Lab) -> list[dict[str, Any]]:
    return [body["data"] for subject, body in lab.live if subject == f"{PREFIX}.rejected"]


@pytest.mark.parametrize("headers", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_stored_request_with_unreadable_headers_is_rejected_once(lab: Lab, headers: bytes) -> None:
    async with connection_kept(lab), raw(lab) as connection:
        await connection.publish(f"{PREFIX}.watch".encode(), headers, b'"a:b"')
        (rejected,) = await until(lambda: rejections(lab))
    assert rejected["error"]["code"] == "invalid_request"
    assert [one["field"] for one in rejected["error"]["details"]] == ["headers"]
    assert (rejected["request"], rejected["task"]) == ('"a:b"', "a:b")


@pytest.mark.parametrize("headers", [*ODD_BUT_READABLE.values(), *INLINE_BYTES.values()])
async def test_a_stored_request_with_odd_headers_is_served(lab: Lab, headers: bytes) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
    async with connection_kept(lab), raw(lab) as connection:
        await connection.publish(f"{PREFIX}.watch".encode(), headers, json.dumps(task).encode())
        assert (await lab.ended(task))["outcome"] == "succeeded"


@pytest.mark.parametrize("headers", [*UNREADABLE.values(), *INLINE_BYTES.values()])
async def test_an_api_request_with_unreadable_headers_is_answered(lab: Lab, headers: bytes) -> None:
    inbox = lab.client.new_inbox()
    answers = await lab.client.subscribe(inbox)
    async with connection_kept(lab), raw(lab) as connection:
        await connection.publish(f"{PREFIX}.api.get {inbox}".encode(), headers, b'"a:b"')
        answer = await answers.next_msg(timeout=5)
    error = json.loads(answer.data)["error"]
    assert (error["code"], [one["field"] for one in error["details"]]) == ("invalid_request", ["headers"])


@pytest.mark.parametrize("reply", ODD_SUBJECTS.values(), ids=ODD_SUBJECTS.keys())
async def test_an_api_request_with_an_odd_reply_subject_harms_nobody(lab: Lab, reply: bytes) -> None:
    async with connection_kept(lab), raw(lab) as connection:
        for _ in range(3):
            await connection.send(b"PUB " + f"{PREFIX}.api.get".encode() + b" " + reply + b" 5", b'"a:b"')


async def test_odd_subjects_among_the_bridges_own_harm_nobody(lab: Lab) -> None:
    async with connection_kept(lab), raw(lab) as connection:
        for odd in ODD_SUBJECTS.values():
            for subject in (f"{PREFIX}.internal.replicas", f"{PREFIX}.events.lab.x.abandoned.unwatched"):
                with contextlib.suppress(nats.errors.Error):
                    await connection.send(b"PUB " + subject.encode() + b" " + odd + b" 2", b"{}")
            await connection.send(b"PUB " + f"{PREFIX}.events.lab.".encode() + odd + b".abandoned.unwatched 2", b"{}")


async def test_the_bridges_own_event_as_a_request_is_dropped_and_counted(lab: Lab) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
    async with lab.bridge() as bridge:
        await lab.listen()
        await lab.publish(task)
        await lab.ended(task)
        message = (await lab.messages())[0]
        stored = len(await lab.messages())
        with capture_logs() as logs:
            for _ in range(3):
                await lab.js.publish(f"{PREFIX}.watch", message.data or b"")
            await until(
                lambda: (
                    bridge.status.metrics().get_sample_value("task_bridge_requests_total", {"outcome": "dropped"}) == 3
                )
            )
        assert [log["event"] for log in logs].count("event_as_request") == 1
        assert len(await lab.messages()) == stored
