"""What can't be read, by hand or from another release, is put aside: it neither circulates nor stops the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import PREFIX, Lab, until
from task_bridge.domain.subjects import task_token
from task_bridge.simulator import scenarios

WATCHES = "VCENTER_TASKS_WATCHES"


async def put_by_hand(lab: Lab, subject: str, body: bytes, **headers: str) -> None:
    await lab.js.publish(f"{PREFIX}.internal.watches.{subject}", body, headers=headers or None)


async def rejections(lab: Lab) -> list[dict[str, Any]]:
    return [body for message, body in await lab.stored() if message.subject == f"{PREFIX}.rejected"]


async def left(lab: Lab) -> int:
    return (await lab.js.stream_info(WATCHES)).state.messages


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b'{"id": 5}', b'{"id": "w", "vcenter": "lab"}', b"[" * 10_000])
async def test_a_watch_that_can_not_be_read_is_rejected_and_ends(lab: Lab, body: bytes) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await put_by_hand(lab, f"lab.{task_token(task)}", body)
        final = await lab.ended(task)
        other = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(other)
        await lab.ended(other)
        await lab.publish(task)  # and the task can be watched
        await until(lambda: len(lab.heard(task)) == 2)
        rejected = await rejections(lab)
    assert (final["type"].split(".")[-2], final["outcome"], final["data"]["sequence"]) == (
        "abandoned",
        "unwatched",
        1,
    )
    assert [(r["data"]["vcenter"], r["data"]["task"]) for r in rejected] == [("lab", task)]
    assert rejected[0]["data"]["request"] == body.decode("utf-8", "replace")[:8192]
    assert rejected[0]["data"]["error"]["code"] == "invalid_request"


async def test_a_watch_whose_message_was_spoilt_ends_where_it_was(lab: Lab) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await lab.publish({"task": task, "labels": {"a": "b"}})
        await until(lambda: lab.heard(task))
    watch = lab.heard(task)[0]["data"]["watch"]
    found = await lab.js.get_last_msg(WATCHES, f"{PREFIX}.internal.watches.lab.{task_token(task)}")
    await lab.js.delete_msg(WATCHES, found.seq or 0)
    await put_by_hand(lab, f"lab.{task_token(task)}", b"spoilt")
    async with lab.bridge():
        final = await lab.ended(task)
        await until(lambda: True)
    assert (final["data"]["watch"], final["data"]["sequence"], final["outcome"]) == (watch, 2, "unwatched")
    assert final["data"]["status"] == "RUNNING"


@pytest.mark.parametrize("subject", ["lab", "lab.a.b", "LAB.a", "lab.%zz", "lab.%FF", "lab.%61"])
async def test_one_whose_subject_tells_nothing_is_only_rejected(lab: Lab, subject: str) -> None:
    async with lab.bridge():
        await put_by_hand(lab, subject, b"{}")
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.listen()
        await lab.publish(task)
        await lab.ended(task)
        rejected = await rejections(lab)
        for _ in range(100):
            if not await left(lab):
                break
        assert await left(lab) == 0
    assert [(r["data"]["vcenter"], r["data"]["task"]) for r in rejected] == [(None, None)]


async def test_what_a_later_release_adds_is_no_poison(lab: Lab) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await lab.publish(task)
        await until(lambda: lab.heard(task))
    subject = f"{PREFIX}.internal.watches.lab.{task_token(task)}"
    found = await lab.js.get_last_msg(WATCHES, subject)
    grown = json.loads(found.data or b"") | {"added_later": {"a": [1]}}
    await lab.js.delete_msg(WATCHES, found.seq or 0)
    await lab.js.publish(subject, json.dumps(grown).encode())
    async with lab.bridge():
        lab.vcenter.set(task, status="SUCCEEDED")
        final = await lab.ended(task)
    assert (final["data"]["sequence"], final["outcome"]) == (2, "succeeded")


@pytest.mark.parametrize("body", [b"", b"{", b'{"specversion": "1.0", "data": {"kind": 5}}'])
async def test_a_stored_event_that_can_not_be_read_keeps_its_place(lab: Lab, body: bytes) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await lab.publish(task)
        await until(lambda: lab.heard(task))
    first = lab.heard(task)[0]
    headers = {"Bridge-Watch": first["data"]["watch"]["id"], "Bridge-Sequence": "2", "Bridge-Kind": "progress"}
    await lab.client.request(f"{PREFIX}.internal.put.lab.{task_token(task)}.progress", body, headers=headers)
    async with lab.bridge():
        lab.vcenter.set(task, status="SUCCEEDED")
        await until(lambda: [s for s, _ in lab.live if s.endswith(".completed.succeeded")])
        messages = await lab.messages()
    numbers = [(message.headers or {})["Bridge-Sequence"] for message in messages]
    last = json.loads(messages[-1].data or b"")
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert (last["outcome"], last["data"]["watch"]) == ("succeeded", first["data"]["watch"])
