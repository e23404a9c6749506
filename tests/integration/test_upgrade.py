"""Watches and events of the release before and of the one after: read, and gone on from where they were."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import PREFIX, Lab, until
from task_bridge.domain.subjects import SubjectNames
from task_bridge.simulator import scenarios

WATCHES, NAMES = "VCENTER_TASKS_WATCHES", SubjectNames(PREFIX)


def with_more(body: dict[str, Any]) -> dict[str, Any]:
    """What a later release may write: fields that this one doesn't know, on every level but in the labels."""
    grows = {key for key, value in body.items() if isinstance(value, dict) and key != "labels"}
    more = {key: with_more(value) if key in grows else value for key, value in body.items()}
    return {**more, "since_2_0": {"a": [1, None]}}


def with_least(body: dict[str, Any], *kept: str) -> dict[str, Any]:
    """What an earlier release may have written: nothing that isn't needed."""
    return {key: value for key, value in body.items() if key in kept}


def an_older_event(body: dict[str, Any]) -> dict[str, Any]:
    needed = ("vcenter", "api", "task", "watch", "kind", "outcome", "final", "sequence", "status", "progress")
    data = with_least(body["data"], *needed)
    data["watch"] = with_least(data["watch"], "id", "since")
    return {**body, "data": data}


def an_older_watch(body: dict[str, Any]) -> dict[str, Any]:
    return with_least(body, "id", "vcenter", "task", "since")


async def written(lab: Lab, task: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """A watch and its last event as today's release writes them, and that event's headers."""
    async with lab.bridge():
        await lab.publish({"task": task, "labels": {"a": "b"}, "timeout": "1h"})
        await until(lambda: lab.heard(task))
    watch = await lab.js.get_msg(WATCHES, (await lab.js.stream_info(WATCHES)).state.last_seq)
    message, body = (await lab.stored())[-1]
    return json.loads(watch.data or b""), body, dict(message.headers or {})


@pytest.mark.parametrize(
    ("of_watch", "of_event"), [(with_more, with_more), (an_older_watch, an_older_event)], ids=["later", "earlier"]
)
async def test_what_another_release_wrote_is_read_and_gone_on_from(lab: Lab, of_watch: Any, of_event: Any) -> None:
    async with lab.bridge():
        await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    watch, event, headers = await written(lab, task)
    for stream in ("VCENTER_TASKS_WATCHES", "VCENTER_TASKS_EVENTS"):
        await lab.js.purge_stream(stream)
    put = NAMES.put_subject("lab", task, "watching")
    # Without Bridge-Instance: the lab holds only what this release writes against its schemas.
    kept = {name: headers[name] for name in ("Bridge-Watch", "Bridge-Sequence", "Bridge-Kind")}
    await lab.js.publish(put, json.dumps(of_event(event)).encode(), headers={**kept, "Nats-Msg-Id": "rewritten"})
    await lab.js.publish(NAMES.watch_subject("lab", task), json.dumps(of_watch(watch)).encode())
    lab.vcenter.set(task, status="SUCCEEDED")
    async with lab.bridge():
        final = await lab.ended(task)
        listed = await lab.ask("list")
    assert (final["data"]["sequence"], final["data"]["watch"]["id"]) == (2, watch["id"])
    assert final["data"]["previous_status"] == "RUNNING"
    assert (final["data"]["kind"], listed["watches"]) == ("completed", [])


async def test_what_this_release_writes_has_all_that_the_one_before_needs(lab: Lab) -> None:
    """Rollback: 1.0 decodes these fields of a watch and of an event; none may be renamed or left out."""
    async with lab.bridge():
        await lab.listen()
    watch, event, headers = await written(lab, lab.vcenter.create(scenarios.runs_forever()))
    assert {"id", "vcenter", "task", "since"} <= set(watch)
    assert {"vcenter", "api", "task", "watch", "kind", "outcome", "final", "sequence"} <= set(event["data"])
    assert {"id", "source", "type", "subject", "time", "data"} <= set(event)
    assert {"Bridge-Watch", "Bridge-Sequence", "Bridge-Kind", "Bridge-Instance"} <= set(headers)
