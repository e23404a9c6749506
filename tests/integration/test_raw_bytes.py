"""Messages that no client library would send, by a raw socket: the bridge stays connected, and answers or rejects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from fuzz.raw_bytes import INLINE_BYTES, ODD_BUT_READABLE, ODD_SUBJECTS, UNREADABLE
from lab import PREFIX, Lab, until
from raw_nats import MessageRefused, raw_connection
from task_bridge.app import Bridge
from task_bridge.jetstream.nats_py_workarounds import accept_any_message
from task_bridge.simulator import scenarios


@contextlib.asynccontextmanager
async def connection_kept(lab: Lab) -> AsyncIterator[Bridge]:
    """A bridge that serves a task before and after, and never loses its connection."""
    accept_any_message(lab.client)  # the test's own connection has the same faults
    with capture_logs() as logs:
        async with lab.bridge() as bridge:
            await lab.listen()
            yield bridge
            task = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
            await lab.publish(task)
            assert (await lab.ended(task))["outcome"] == "succeeded"
    assert [log["event"] for log in logs if log["event"] in ("nats_away", "nats_back")] == []
    assert not [log for log in logs if log["event"] == "nats_connected"][1:]


def rejections(lab: Lab) -> list[dict[str, Any]]:
    return [body["data"] for subject, body in lab.live if subject == f"{PREFIX}.rejected"]


@pytest.mark.parametrize("headers", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_stored_request_with_unreadable_headers_is_rejected_once(lab: Lab, headers: bytes) -> None:
    async with connection_kept(lab), raw_connection(lab.server.url) as connection:
        await connection.publish(f"{PREFIX}.watch".encode(), headers, b'"a:b"')
        (rejected,) = await until(lambda: rejections(lab))
    assert rejected["error"]["code"] == "invalid_request"
    assert [one["field"] for one in rejected["error"]["details"]] == ["headers"]
    assert (rejected["request"], rejected["task"]) == ('"a:b"', "a:b")


@pytest.mark.parametrize("headers", [*ODD_BUT_READABLE.values(), *INLINE_BYTES.values()])
async def test_a_stored_request_with_odd_headers_is_served(lab: Lab, headers: bytes) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
    async with connection_kept(lab), raw_connection(lab.server.url) as connection:
        await connection.publish(f"{PREFIX}.watch".encode(), headers, json.dumps(task).encode())
        assert (await lab.ended(task))["outcome"] == "succeeded"


@pytest.mark.parametrize("headers", [*UNREADABLE.values(), *INLINE_BYTES.values()])
async def test_an_api_request_with_unreadable_headers_is_answered(lab: Lab, headers: bytes) -> None:
    inbox = lab.client.new_inbox()
    answers = await lab.client.subscribe(inbox)
    async with connection_kept(lab) as bridge, raw_connection(lab.server.url) as connection:
        await connection.publish(f"{PREFIX}.api.get {inbox}".encode(), headers, b'"a:b"')
        answer = await answers.next_msg(timeout=5)
        await connection.publish(f"{PREFIX}.api.watch {inbox}".encode(), headers, b'"a:b"')
        await answers.next_msg(timeout=5)
        sample = bridge.status.metrics().get_sample_value
        assert sample("task_bridge_requests_total", {"outcome": "rejected"}) == 1
    error = json.loads(answer.data)["error"]
    assert (error["code"], [one["field"] for one in error["details"]]) == ("invalid_request", ["headers"])


@pytest.mark.parametrize("reply", ODD_SUBJECTS.values(), ids=ODD_SUBJECTS.keys())
async def test_an_api_request_with_an_odd_reply_subject_harms_nobody(lab: Lab, reply: bytes) -> None:
    async with connection_kept(lab), raw_connection(lab.server.url) as connection:
        for _ in range(3):
            await connection.send(b"PUB " + f"{PREFIX}.api.get".encode() + b" " + reply + b" 5", b'"a:b"')


async def test_odd_subjects_among_the_bridges_own_harm_nobody(lab: Lab) -> None:
    async with connection_kept(lab), raw_connection(lab.server.url) as connection:
        for odd in ODD_SUBJECTS.values():
            for subject in (f"{PREFIX}.internal.replicas", f"{PREFIX}.events.lab.x.abandoned.unwatched"):
                with contextlib.suppress(MessageRefused):
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
