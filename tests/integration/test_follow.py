"""Follows through the whole bridge: tasks that nobody asked for get their watches, each one and only one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lab import PASSWORD, PREFIX, USERNAME, BridgeProcess, Lab, until
from task_bridge.app import Bridge
from task_bridge.simulator import SimulatedTarget, scenarios


async def follow(lab: Lab, **fields: Any) -> dict[str, Any]:
    return await call(lab, "follow", **{"name": "all"} | fields)


async def call(lab: Lab, verb: str, **fields: Any) -> dict[str, Any]:
    return await lab.ask(verb, fields)


async def follow_events(lab: Lab) -> list[dict[str, Any]]:
    return [event for message, event in await lab.stored() if str(message.subject).startswith(f"{PREFIX}.follows.")]


async def endings(lab: Lab) -> Counter[str]:
    events = [event for message, event in await lab.stored() if str(message.subject).startswith(f"{PREFIX}.events.")]
    return Counter(event["data"]["task"] for event in events if event["data"]["final"])


async def following(lab: Lab, count: int = 1) -> None:
    """Waits until so many events of follows are stored."""
    await until_true(lambda: has_follow_events(lab, count))


async def has_follow_events(lab: Lab, count: int) -> bool:
    return len(await follow_events(lab)) >= count


async def until_true(fact: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await fact():
        assert time.monotonic() < deadline, f"not within {within_s} s: {fact}"
        await asyncio.sleep(0.02)


async def test_tasks_that_nobody_asked_for_are_watched_from_their_start_to_their_end(lab: Lab) -> None:
    before = lab.vcenter.create(scenarios.succeeds(after_s=30.0), flavour="vim")
    async with lab.bridge():
        await lab.listen()
        reply = await follow(lab, labels={"team": "platform"})
        assert reply["outcome"] == "accepted"
        await following(lab)
        vm = SimulatedTarget("VirtualMachine", "vm-7")
        task = lab.vcenter.create(scenarios.succeeds(after_s=2.0), flavour="vim", target=vm)
        final = (await lab.ended(task))["data"]
        assert final["watch"]["follow"] == "all"
        assert final["watch"]["labels"] == {"team": "platform"}
        assert (await lab.events(task))[0]["data"]["kind"] == "watching"
        listed = (await call(lab, "follows"))["follows"]
        assert [(one["name"], one["state"], one["started_watches"], one["gaps"]) for one in listed] == [
            ("all", "following", 1, 0)
        ]
        assert (await follow(lab, labels={"team": "platform"}))["outcome"] == "already_following"
        assert (await call(lab, "unfollow", name="all"))["outcome"] == "unfollowed"
        kinds = [(event["data"]["kind"], event["data"]["reason"]) for event in await follow_events(lab)]
        assert kinds == [("following", "started"), ("unfollowed", None)]
        assert before not in await endings(lab)


async def test_tasks_of_an_absence_are_found_afterwards_each_once(lab: Lab) -> None:
    async with lab.bridge():
        await follow(lab)
        await following(lab)
        first = [lab.vcenter.create(scenarios.succeeds(after_s=0.2), flavour="vim") for _ in range(5)]
        await until_ended(lab, first)
    absent = [lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim") for _ in range(20)]
    for task in absent[:10]:
        lab.vcenter.retire(task)
    async with lab.bridge():
        later = lab.vcenter.create(scenarios.succeeds(after_s=0.2), flavour="vim")
        await until_ended(lab, [*first, *absent, later])
        assert set((await endings(lab)).values()) == {1}
        reasons = [event["data"]["reason"] for event in await follow_events(lab)]
        assert reasons == ["started", "progressed", "resumed"]


async def test_a_follow_that_was_ended_starts_no_more_watches_whichever_replica_was_asked(lab: Lab) -> None:
    async with lab.bridge() as one, lab.bridge() as two:
        for _ in range(4):  # any replica may run it, and any other may be asked
            await follow(lab)
            await until(lambda: any(list_follows(bridge) == ["following"] for bridge in (one, two)))
            await call(lab, "unfollow", name="all")
            await until(lambda: not any(map(list_follows, (one, two))), 5.0)
        task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await follow(lab, name="others", operations=["clone"])
        clone = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="clone")
        await until_ended(lab, [clone])
        assert task not in await endings(lab)


async def test_a_replica_that_never_heard_of_the_end_of_its_follow_learns_of_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def subscribe_to_nothing(*_: object) -> None:
        """As if every hint were lost."""

    monkeypatch.setattr("task_bridge.app._Parts._subscribe_to_follows", subscribe_to_nothing)
    monkeypatch.setattr("task_bridge.follower._SWEEP_S", 0.3)
    async with lab.bridge() as bridge:
        await follow(lab)
        await following(lab)
        assert (await call(lab, "unfollow", name="all"))["outcome"] == "unfollowed"
        await until(lambda: not list_follows(bridge), 5.0)


def list_follows(bridge: Bridge) -> list[str]:
    assert bridge.status.follower is not None
    return [report.state for report in bridge.status.follower.reports()]


async def until_ended(lab: Lab, tasks: list[str], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while missing := set(tasks) - set(await endings(lab)):
        assert time.monotonic() < deadline, f"not ended: {missing}"
        await asyncio.sleep(0.02)


async def test_endings_alone_are_published_if_the_follow_says_so(lab: Lab) -> None:
    async with lab.bridge():
        await follow(lab, events="endings")
        await following(lab)
        tasks = [lab.vcenter.create(scenarios.succeeds(after_s=1.0), flavour="vim") for _ in range(3)]
        await until_ended(lab, tasks)
        for task in tasks:
            (event,) = await lab.events(task)
            assert (event["data"]["kind"], event["data"]["sequence"]) == ("completed", 1)


async def test_another_body_under_the_name_replaces_the_follow_and_keeps_its_place(lab: Lab) -> None:
    async with lab.bridge():
        first = await follow(lab)
        await following(lab)
        second = await follow(lab, operations=["clone"])
        assert (second["outcome"], second["follow"]["id"]) == ("updated", first["follow"]["id"])
        await following(lab, 2)
        clone = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="clone")
        power = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="powerOn")
        await until_ended(lab, [clone])
        started, replaced = (event["data"] for event in await follow_events(lab))
        assert (started["reason"], replaced["reason"]) == ("started", "replaced")
        assert (started["sequence"], replaced["sequence"]) == (1, 2)
        assert replaced["place"]["begins_at"] == started["place"]["begins_at"]
        assert power not in await endings(lab)


async def test_a_task_that_was_requested_too_has_one_watch(lab: Lab) -> None:
    async with lab.bridge():
        await follow(lab)
        await follow(lab, name="clones", operations=["power*"])
        await following(lab, 2)
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.5), flavour="vim")
        assert (await lab.ask("watch", {"task": task}))["outcome"] in ("accepted", "already_watching")
        await until_ended(lab, [task])
        other = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [other])
        assert await endings(lab) == {task: 1, other: 1}


async def test_a_history_that_was_purged_during_an_absence_is_a_gap(lab: Lab) -> None:
    async with lab.bridge():
        await follow(lab)
        await following(lab)
        known = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [known])
    lab.vcenter.options.history_retention_s = 0.0
    async with lab.bridge():

        async def has_gap() -> bool:
            return bool((await follow_events(lab))[-1]["data"]["kind"] == "gap")

        await until_true(has_gap)
        gap = (await follow_events(lab))[-1]["data"]
        assert gap["from"] <= gap["to"]
        assert known in gap["reason"]
        lab.vcenter.options.history_retention_s = None
        later = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [later])
        assert (await call(lab, "follows"))["follows"][0]["gaps"] == 1


async def test_a_stored_request_to_follow_is_served_when_a_bridge_runs_and_a_wrong_one_rejected(lab: Lab) -> None:
    async with lab.bridge():
        pass
    await lab.js.publish(f"{PREFIX}.follow", b'{"name": "nightly"}')
    await lab.js.publish(f"{PREFIX}.follow", b'{"name": "Nightly"}')
    async with lab.bridge():
        await following(lab)
        await lab.listen()
        stored = [event for message, event in await lab.stored() if message.subject == f"{PREFIX}.rejected"]
        (rejection,) = stored or [await until(lambda: lab.live[0][1])]
        assert rejection["data"]["error"]["code"] == "invalid_request"
        assert rejection["data"]["error"]["details"][0]["field"] == "name"
        assert [one["name"] for one in (await call(lab, "follows"))["follows"]] == ["nightly"]
        assert (await call(lab, "unfollow", name="other"))["error"]["code"] == "not_following"


async def test_a_setting_follows_a_vcenter_without_any_request(lab: Lab) -> None:
    vcenter = {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}
    for setting, operations in (("all", []), ('{"operations": ["clone"], "labels": {"a": "b"}}', ["clone"])):
        async with lab.bridge(vcenters={"lab": vcenter | {"follow": setting}}):

            async def is_in_force(operations: list[str] = operations) -> bool:
                follows = (await call(lab, "follows"))["follows"]
                return [(one["name"], one["follow"]["operations"]) for one in follows] == [("config", operations)]

            await until_true(is_in_force)
    with capture_logs() as logs:
        async with lab.bridge():
            await until(lambda: [one for one in logs if one["event"] == "follow_not_configured"])


@pytest.mark.timeout(120)
async def test_no_task_is_lost_or_watched_twice_when_replicas_are_killed(lab: Lab, tmp_path: Path) -> None:
    replicas = []
    for number in range(2):
        directory = tmp_path / f"replica{number}"
        directory.mkdir()
        replicas.append(BridgeProcess(lab.environment(), directory))
    try:
        for replica in replicas:
            await replica.start()
        for replica in replicas:
            await replica.ready()
        await follow(lab)
        await following(lab)
        created = []
        for turn in range(6):
            for _ in range(20):
                created.append(lab.vcenter.create(scenarios.succeeds(after_s=1.0), flavour="vim"))
                await asyncio.sleep(0.02)
            victim = replicas[turn % 2]
            await victim.end(signal.SIGKILL)
            await victim.start()
            await victim.ready()
        await until_ended(lab, created, within_s=60.0)
    finally:
        for replica in replicas:
            await replica.close()
    assert set((await endings(lab)).values()) == {1}
    assert [event["data"]["kind"] for event in await follow_events(lab) if event["data"]["kind"] == "gap"] == []
    numbers = [event["data"]["sequence"] for event in await follow_events(lab)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_flood_is_slowed_down_and_not_dropped(lab: Lab) -> None:
    async with lab.bridge(follow_max_rate=50):
        await follow(lab)
        await following(lab)
        tasks = [lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim") for _ in range(200)]

        async def is_slowed() -> bool:
            return bool((await call(lab, "follows"))["follows"][0]["state"] == "slowed")

        await until_true(is_slowed)
        await until_ended(lab, tasks)
        assert set((await endings(lab)).values()) == {1}
