"""What is asked wrongly is told so, and holds up nothing; what is asked rightly is answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from lab import EVENTS, PREFIX, Lab, until
from task_bridge.domain.subjects import VERBS
from task_bridge.simulator import faults, scenarios
from task_bridge.vcenter import source as kinds

BAD = [
    (b"{", "invalid_request"),
    (b'{"task": "a:b", "tmeout": 5}', "invalid_request"),
    (b'{"task": "a/b", "labels": {"a": "b"}}', "invalid_request"),
    (b'{"task": "a:b", "timeout": NaN}', "invalid_request"),
    (b"\xff\xfe", "invalid_request"),
    (b"[" * 100_000, "invalid_request"),
    (b'"a\\u0000b"', "invalid_request"),
    (b'{"task": "a:b", "vcenter": "elsewhere"}', "unknown_vcenter"),
    (b"", "invalid_request"),
]


@pytest.mark.parametrize(("body", "code"), BAD, ids=range(len(BAD)))
async def test_a_request_that_can_never_be_served_is_rejected_once(lab: Lab, body: bytes, code: str) -> None:
    async with lab.bridge():
        await lab.listen()
        await lab.publish(body)
        good = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(good)
        await lab.ended(good)
        # A bridge that has just started listens five seconds for others that may know the vCenter.
        rejections = await until(lambda: [event for subject, event in lab.live if subject == f"{PREFIX}.rejected"])
        state = (await lab.js.stream_info("VCENTER_TASKS_REQUESTS")).state
    assert [rejection["data"]["error"]["code"] for rejection in rejections] == [code]
    assert rejections[0]["type"] == "io.vcenter-task-bridge.request.rejected.v1"
    assert rejections[0]["data"]["request"] == body.decode("utf-8", "replace")[:8192]
    assert rejections[0].get("subject", "").isprintable()  # CloudEvents wants no control characters there
    assert state.messages == 0
    stored = [json.loads(m.data or b"") for m, _ in await lab.stored() if m.subject == f"{PREFIX}.rejected"]
    assert stored == rejections


@pytest.mark.parametrize(("body", "code"), BAD[:-1], ids=range(len(BAD) - 1))
@pytest.mark.parametrize("verb", ["watch", "get", "unwatch", "cancel", "list"])
async def test_every_verb_answers_what_is_wrong(lab: Lab, verb: str, body: bytes, code: str) -> None:
    async with lab.bridge():
        reply = await lab.reply(verb, body)
    headers, error = reply.headers or {}, json.loads(reply.data)["error"]
    assert headers["Nats-Service-Error-Code"] == str(error["status"])
    assert headers["Nats-Service-Error"].isascii()
    assert "\n" not in headers["Nats-Service-Error"]
    assert set(error) == {"status", "code", "message", "details"}
    assert error["status"] in (400, 404)


@pytest.mark.parametrize("verb", ["get", "unwatch"])
async def test_a_wildcard_names_no_vcenter_and_touches_no_watch(lab: Lab, verb: str) -> None:
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.ask("watch", task)
        reply = await lab.reply(verb, json.dumps({"task": task, "vcenter": "*"}).encode())
        standing = await lab.ask("get", task)
    assert json.loads(reply.data)["error"]["code"] == "unknown_vcenter"
    assert standing["watching"] is True


async def test_the_list_pages_over_all_watches_oldest_first(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(7)]
        for task in tasks:
            await lab.ask("watch", task)
        await until(lambda: len({body["subject"] for _, body in lab.live}) == 7)
        pages: list[dict[str, Any]] = [await lab.ask("list", {"limit": 3})]
        while (cursor := pages[-1]["cursor"]) is not None:
            pages.append(await lab.ask("list", {"limit": 3, "cursor": cursor}))
    listed = [watch for page in pages for watch in page["watches"]]
    assert [watch["task"] for watch in listed] == tasks
    assert {page["total"] for page in pages} == {7}
    assert {(watch["status"], watch["unconfigured"]) for watch in listed} <= {
        ("RUNNING", False),
        ("PENDING", False),
    }
    fields = {"vcenter", "task", "watch", "status", "progress", "unconfigured", "target", "vcenter_state"}
    assert set(listed[0]) == fields


async def test_get_tells_what_is_watched_what_ended_and_what_nobody_knows(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        running, done = (
            lab.vcenter.create(scenarios.runs_forever()),
            lab.vcenter.create(scenarios.succeeds_at_once()),
        )
        for task in (running, done):
            await lab.publish(task)
        final = await lab.ended(done)
        await until(lambda: lab.heard(running))
        first, second, third = [await lab.ask("get", task) for task in (running, done, "nobody:knows")]
    assert (first["watching"], first["last_event"]["data"]["final"]) == (True, False)
    assert (second["watching"], second["last_event"]) == (False, final)
    assert second["watch"] == final["data"]["watch"]
    assert third["error"]["code"] == "unknown_task"


async def test_cancel_asks_vcenter_only_where_it_is_switched_on(lab: Lab) -> None:
    async with lab.bridge():
        refused = await lab.ask("cancel", "a:b")
    async with lab.bridge(allow_cancel=True):
        await lab.listen()
        task, stubborn = (
            lab.vcenter.create(scenarios.runs_forever()),
            lab.vcenter.create(scenarios.runs_forever(cancelable=False)),
        )
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        taken = await lab.ask("cancel", task)
        final = await lab.ended(task)
        answers = [await lab.ask("cancel", one) for one in (stubborn, task, "no:such")]
    assert refused["error"]["code"] == "forbidden"
    assert taken == {"outcome": "cancel_requested", "vcenter": "lab", "task": task}
    assert final["data"]["outcome"] == "canceled"
    assert [answer["error"]["code"] for answer in answers] == ["not_cancelable", "already_ended", "unknown_task"]


async def test_it_is_a_nats_service(lab: Lab) -> None:
    async with lab.bridge():
        ping = json.loads((await lab.client.request("$SRV.PING.vcenter-task-bridge", timeout=5)).data)
        info = json.loads((await lab.client.request("$SRV.INFO.vcenter-task-bridge", timeout=5)).data)
    assert ping["name"] == "vcenter-task-bridge"
    assert {endpoint["subject"] for endpoint in info["endpoints"]} == {
        f"{PREFIX}.api.{verb}{vcenter}" for verb in VERBS for vcenter in ("", ".*")
    }


async def test_a_slow_request_does_not_hold_up_the_others(lab: Lab) -> None:
    async with lab.bridge(allow_cancel=True):
        task = lab.vcenter.create(scenarios.runs_forever())
        lab.vcenter.options.latency_s = 1.0
        slow = [asyncio.create_task(lab.ask("cancel", task)) for _ in range(3)]
        await asyncio.sleep(0)
        assert (await lab.ask("list"))["watches"] == []
        assert not any(one.done() for one in slow)
        assert [one["outcome"] for one in await asyncio.gather(*slow)] == ["cancel_requested"] * 3


async def test_a_cancel_that_vcenter_does_not_answer_is_answered(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "CANCEL_S", 0.5)
    task, classic = (
        lab.vcenter.create(scenarios.runs_forever()),
        lab.vcenter.create(scenarios.runs_forever(), flavour="vim"),
    )
    async with lab.bridge(allow_cancel=True):
        for one, path in ((task, "/tasks"), (classic, "/sdk")):
            with lab.vcenter.faults.during(faults.delayed(3_600), path=path):
                answer = await lab.ask("cancel", one)
            assert answer["error"]["code"] == "vcenter_unavailable"
            assert "in time" in answer["error"]["message"]


async def test_ids_of_strangers_stay_in_their_token(lab: Lab) -> None:
    hostile = ["a.b:c", "*", ">", "ünïcode:x", "%2E", "a:b.>"]
    async with lab.bridge(not_found_grace_s=60.0):
        await lab.listen()
        for task in hostile:
            reply = await lab.ask("watch", task)
            assert reply["outcome"] == "accepted"
            assert reply["events"].count(".") == 5
        listed = await lab.ask("list")
    assert [watch["task"] for watch in listed["watches"]] == hostile
    assert (await lab.js.stream_info(EVENTS)).config.subjects == [
        f"{PREFIX}.internal.put.>",
        f"{PREFIX}.rejected",
        f"{PREFIX}.follows.>",
    ]
