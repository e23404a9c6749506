"""Events that vanish from under a held watch: the watch goes on soon, under new ids, and says what was lost."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable

import pytest

from lab import EVENTS, PREFIX, Lab, until
from task_bridge.app import Bridge
from task_bridge.domain.subjects import task_token
from task_bridge.jetstream import monitor
from task_bridge.simulator import faults, scenarios
from task_bridge.web.health import build_readiness

WATCHES = "VCENTER_TASKS_WATCHES"
NEXT_S = 5.0
"""How soon the next event is stored."""
ACK_WAIT_S = 1.0


async def purge_all(lab: Lab, task: str) -> None:
    await lab.js.purge_stream(EVENTS)


async def purge_task(lab: Lab, task: str) -> None:
    await lab.js.purge_stream(EVENTS, subject=f"{PREFIX}.events.lab.{task_token(task)}.>")


async def evict(lab: Lab, task: str) -> None:
    """As an operator's cap does: the oldest messages go."""
    config = (await lab.js.stream_info(EVENTS)).config
    config.max_msgs = 1
    await lab.js.update_stream(config)
    await write_by_hand(lab, "lab.another.status", {})


async def recreate(lab: Lab, task: str) -> None:
    config = (await lab.js.stream_info(EVENTS)).config
    await lab.js.delete_stream(EVENTS)
    await lab.js.add_stream(config)


async def replace_by_foreign(lab: Lab, task: str) -> None:
    await lab.js.purge_stream(EVENTS)
    await write_by_hand(lab, f"lab.{task_token(task)}.status", {"Bridge-Watch": "w", "Bridge-Sequence": "1"})


async def write_by_hand(lab: Lab, subject: str, headers: dict[str, str]) -> None:
    await lab.js.publish(f"{PREFIX}.internal.put.{subject}", b"{}", headers=headers)


LOSSES = [purge_all, purge_task, evict, recreate, replace_by_foreign]
Loss = Callable[[Lab, str], Awaitable[None]]


def heard_ids(lab: Lab, task: str) -> list[str]:
    return [event["id"] for event in lab.heard(task)]


def lost_reason(bridge: Bridge) -> str:
    streams = {stream["name"]: stream for stream in build_readiness(bridge.status.health())["streams"]}
    assert streams[EVENTS]["ok"], "lost events don't stop the service"
    return streams[EVENTS]["reason"] or ""


def lost_count(bridge: Bridge) -> float:
    return bridge.status.metrics().get_sample_value("task_bridge_lost_memories_total") or 0.0


async def watch_until_progress(lab: Lab, task: str) -> None:
    """Watch the task until it has two events."""
    await lab.publish(task)
    await until(lambda: lab.heard(task))
    lab.vcenter.set(task, status="BLOCKED")
    await until(lambda: len(lab.heard(task)) == 2)


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_held_watch_is_restated_at_once_under_a_new_id(
    lab: Lab, lose: Loss, capsys: pytest.CaptureFixture[str]
) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge() as bridge:
        await watch_until_progress(lab, task)
        assert (lost_reason(bridge), lost_count(bridge)) == ("", 0)
        await lose(lab, task)
        if lose is replace_by_foreign:
            lab.vcenter.set(task, status="RUNNING")
        await until(lambda: len(lab.heard(task)) == 3, NEXT_S)
        restated = lab.heard(task)[2]
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task, NEXT_S)
        await until(lambda: "watch" in lost_reason(bridge))
        assert lost_count(bridge) == 1
    ids = heard_ids(lab, task)
    assert restated["data"]["previous_status"] == "BLOCKED"
    assert len(set(ids)) == len(ids), ids
    assert "memory_lost" in capsys.readouterr().out


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_replica_that_takes_the_watch_over_uses_no_id_again(lab: Lab, lose: Loss) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await watch_until_progress(lab, task)
    await lose(lab, task)
    async with lab.bridge() as bridge:
        await until(lambda: len(lab.heard(task)) == 3, NEXT_S)
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task, NEXT_S)
        assert lost_count(bridge) == 1
        assert "watch" in lost_reason(bridge)
    ids = heard_ids(lab, task)
    assert len(set(ids)) == len(ids), ids


async def test_an_id_that_jetstream_knows_is_not_used_again(lab: Lab) -> None:
    """A recreated consumer delivers the watch as if for the first time, so only its event's id shows the loss."""
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await watch_until_progress(lab, task)
    await purge_all(lab, task)
    await lab.js.delete_consumer(WATCHES, "bridge")
    async with lab.bridge() as bridge:
        await until(lambda: len(lab.heard(task)) == 3, NEXT_S)
        assert lost_count(bridge) == 1
    ids = heard_ids(lab, task)
    assert len(set(ids)) == len(ids), ids


async def test_a_watch_whose_events_are_gone_is_unwatched_under_a_new_id(lab: Lab) -> None:
    """While vCenter is away, so that nothing was restated."""
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await watch_until_progress(lab, task)
    await purge_all(lab, task)
    lab.vcenter.faults.add(faults.gateway_unavailable())
    async with lab.bridge():
        answer = await lab.ask("unwatch", {"task": task, "vcenter": "lab"})
        final = await lab.ended(task, NEXT_S)
    assert (answer.get("outcome"), answer["last_event"]["id"]) == ("unwatched", final["id"])
    assert (await lab.js.stream_info(WATCHES)).state.messages == 0
    ids = heard_ids(lab, task)
    assert len(set(ids)) == len(ids), ids


async def test_a_watch_that_others_ended_before_its_events_went_is_not_restated(lab: Lab) -> None:
    """A replica that didn't hear of the end finds neither the final event nor the watch's message."""
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge() as bridge:
        await watch_until_progress(lab, task)
        watch = await lab.js.get_last_msg(WATCHES, f"{PREFIX}.internal.watches.>")
        await lab.js.delete_msg(WATCHES, watch.seq or 0)
        await purge_all(lab, task)
        await until(lambda: bridge.status.health().held == 0, NEXT_S)
    assert len(heard_ids(lab, task)) == 2


async def test_a_watch_without_events_that_others_ended_before_theirs_went_stays_ended(lab: Lab) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    lab.vcenter.faults.add(faults.gateway_unavailable())
    async with lab.bridge(ack_wait_s=ACK_WAIT_S) as bridge:
        await lab.publish(task)
        await until(lambda: bridge.status.health().held == 1)
        late = time.monotonic() + ACK_WAIT_S + 0.1
        await until(lambda: time.monotonic() > late)
        watch = await lab.js.get_last_msg(WATCHES, f"{PREFIX}.internal.watches.>")
        await lab.js.delete_msg(WATCHES, watch.seq or 0)
        lab.vcenter.faults.clear()
        await until(lambda: bridge.status.health().held == 0, NEXT_S)
    assert heard_ids(lab, task) == []


async def test_an_event_that_covers_the_memory_takes_nothing_away(lab: Lab) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await watch_until_progress(lab, task)
    await write_by_hand(lab, f"lab.{task_token(task)}.status", {"Bridge-Watch": "w", "Bridge-Sequence": "9"})
    async with lab.bridge() as bridge:
        lab.vcenter.set(task, status="RUNNING")
        await until(lambda: len(lab.heard(task)) == 3, NEXT_S)
        await write_by_hand(lab, f"lab.{task_token(task)}.status", {"Bridge-Watch": "w", "Bridge-Sequence": "9"})
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task, NEXT_S)
        assert lost_count(bridge) == 0
    assert [event["data"]["sequence"] for event in lab.heard(task)] == [1, 2, 3, 4]


async def test_events_that_age_out_and_a_watch_that_begins_then_are_no_loss(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge() as bridge:
        for _ in range(2):
            await purge_all(lab, "")
            tasks = [lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(3)]
            for task in tasks:
                await lab.publish(task)
            for task in tasks:
                await lab.ended(task)
        assert lost_count(bridge) == 0
    assert {event["data"]["sequence"] for _, event in lab.live} == {1, 2}


@pytest.mark.parametrize("cap", [{"max_bytes": 50_000_000}, {"max_msgs": 100_000}])
async def test_a_cap_on_the_events_is_warned_about(
    lab: Lab, cap: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    async with lab.bridge() as bridge:
        config = (await lab.js.stream_info(EVENTS)).config
        for name, value in cap.items():
            setattr(config, name, value)
        await lab.js.update_stream(config)
        (name,) = cap
        await until(lambda: name in lost_reason(bridge), within_s=10)
        assert bridge.status.health().status == "ok"
        setattr(config, name, -1)
        await lab.js.update_stream(config)
        await until(lambda: not lost_reason(bridge), within_s=10)
    assert capsys.readouterr().out.count("events_capped") == 1


@pytest.mark.parametrize("queue", ["VCENTER_TASKS_REQUESTS", WATCHES])
async def test_messages_that_the_consumer_does_not_know_are_warned_about(
    lab: Lab, queue: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its filter was changed; a consumer that was restored from a backup may miss some too."""
    monkeypatch.setattr(monitor, "UNKNOWN_S", 1.0)
    async with lab.bridge() as bridge:
        config = (await lab.js.consumer_info(queue, "bridge")).config
        config.filter_subject = f"{PREFIX}.watch.nothing" if "REQUESTS" in queue else f"{PREFIX}.internal.watches.x.>"
        await lab.client.request(
            f"$JS.API.CONSUMER.DURABLE.CREATE.{queue}.bridge",
            json.dumps({"stream_name": queue, "config": config.as_dict()}).encode(),
        )
        await lab.publish(lab.vcenter.create(scenarios.runs_forever()))

        def reason() -> str:
            return next(part.reason or "" for part in bridge.status.health().consumers if part.name.startswith(queue))

        await until(lambda: "1 message" in reason(), within_s=15)
        config.filter_subject = None
        await lab.client.request(
            f"$JS.API.CONSUMER.DURABLE.CREATE.{queue}.bridge",
            json.dumps({"stream_name": queue, "config": config.as_dict()}).encode(),
        )
    assert capsys.readouterr().out.count("messages_unknown") == 1
