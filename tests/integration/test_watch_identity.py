"""The traps of the watch id: a new watch after an abandoned one, and whatever is delivered again after the end."""

from __future__ import annotations

import json
import time

import msgspec
from nats.js.api import RawStreamMsg, StreamState

from lab import PREFIX, Lab, until
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.watch import Watch
from task_bridge.simulator import scenarios

WATCHES = "VCENTER_TASKS_WATCHES"


async def watches(lab: Lab) -> StreamState:
    return (await lab.js.stream_info(WATCHES)).state


async def deliver(lab: Lab, watch: Watch) -> None:
    """Puts a watch's message where it lay before, as a redelivery finds it when the dedupe window is over."""
    await until_empty(lab)  # the ack of the one that lay there may still be on its way
    await lab.js.publish(SubjectNames(PREFIX).watch_subject(watch.vcenter, watch.task), msgspec.json.encode(watch))
    await until_empty(lab)


async def until_empty(lab: Lab) -> None:
    deadline = time.monotonic() + 10
    while (await watches(lab)).messages:
        assert time.monotonic() < deadline, "a watch's message is still there"


async def stored_watch(lab: Lab, request: object) -> Watch:
    """Publishes a stored request and returns the watch it became."""
    await lab.publish(request)
    while not (await watches(lab)).messages:
        pass
    message = await lab.js.get_msg(WATCHES, (await watches(lab)).last_seq)
    return msgspec.json.decode(message.data or b"", type=Watch)


async def test_after_an_abandoned_watch_a_request_begins_a_new_one(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish({"task": task, "timeout": 0.3})
        first = await lab.ended(task)
        lab.live.clear()
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        lab.vcenter.set(task, status="SUCCEEDED")
        second = await lab.ended(task)
        await until_empty(lab)
    ids = {event["data"]["watch"]["id"] for event in lab.heard(task)}
    assert ids == {second["data"]["watch"]["id"]} != {first["data"]["watch"]["id"]}
    assert [event["data"]["sequence"] for event in lab.heard(task)] == list(range(1, len(lab.heard(task)) + 1))


async def test_after_completed_nothing_new_is_published_and_the_event_is_the_answer(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        final = await lab.ended(task)
        await until_empty(lab)
        before = len(lab.live)
        reply = await lab.ask("watch", {"task": task})
        await lab.publish(task)
        await until_empty(lab)
        assert (reply["outcome"], reply["last_event"]) == ("already_completed", final)
        assert reply["watch"] == final["data"]["watch"]
        assert len(lab.live) == before


async def test_a_stored_request_delivered_again_after_its_watch_ended_starts_nothing(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        watch = await stored_watch(lab, {"task": task})
        await until(lambda: lab.heard(task))
        ended = await lab.ask("unwatch", {"task": task})
        await until(lambda: len(lab.heard(task)) == 2)
        await deliver(lab, watch)
        assert await lab.events(task) == lab.heard(task)
        assert lab.heard(task)[-1] == ended["last_event"]


async def test_a_stored_request_that_another_watch_served_starts_nothing(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        asked_at = time.time()
        await lab.ask("watch", {"task": task, "timeout": 0.5})
        await lab.ended(task)
        before = len(lab.heard(task))
        late = Watch(id=f"{asked_at * 1000:.0f}-77", vcenter="lab", task=task, since=asked_at, stored_request=True)
        await deliver(lab, late)
        assert len(await lab.events(task)) == before


async def test_who_only_published_is_answered_by_any_final_event_stored_after_the_request(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        earlier = await stored_watch(lab, {"task": task})
        await until(lambda: lab.heard(task))
        accepted = await lab.js.publish(f"{PREFIX}.watch", json.dumps(task).encode())
        request = await lab.js.get_msg(accepted.stream, accepted.seq)
        await lab.ask("unwatch", task)
        await until_empty(lab)
        own = Watch(id="1-1", vcenter="lab", task=task, since=stored_at(request), stored_request=True)
        await deliver(lab, own)  # the request, as a redelivery at any later time
        answers = [
            (str(message.subject).rsplit(".", 1)[1], event["data"]["watch"]["id"])
            for message, event in await lab.stored()
            if event["data"]["final"] and stored_at(message) > stored_at(request)
        ]
    assert answers == [("unwatched", earlier.id)]  # of a watch that began before the request, and the only answer
    assert earlier.since < stored_at(request)


def stored_at(message: RawStreamMsg) -> float:
    assert message.time is not None
    return message.time.timestamp()


async def test_an_ack_lost_after_the_ending_is_made_good_without_an_event(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        watch = await stored_watch(lab, {"task": task})
        await lab.ended(task)
        await until_empty(lab)
        await deliver(lab, watch)
        assert await lab.events(task) == lab.heard(task)


async def test_unwatch_ends_a_watch_once_and_tells_what_there_is_to_tell(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        first, second = await lab.ask("unwatch", task), await lab.reply("unwatch", task)
        never = await lab.reply("unwatch", "never:asked")
        await until_empty(lab)
    assert first["outcome"] == "unwatched"
    assert first["last_event"]["data"]["outcome"] == "unwatched"
    assert first["last_event"]["data"]["status"] == "RUNNING"
    assert (second.headers or {})["Nats-Service-Error-Code"] == "409"
    assert msgspec.json.decode(second.data)["last_event"] == first["last_event"]
    assert msgspec.json.decode(never.data)["error"]["code"] == "not_watched"
