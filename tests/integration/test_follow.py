"""Follows through the whole bridge: tasks that nobody asked for get their watches, each one and only one."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from follow_lab import call, endings, follow, follow_events, following, has_follow_events, until_ended, until_true
from lab import PASSWORD, PREFIX, USERNAME, BridgeProcess, Lab, until
from task_bridge import follower
from task_bridge.app import Bridge
from task_bridge.simulator import SimulatedTarget, faults, scenarios
from task_bridge.simulator.options import Timestamps
from task_bridge.vcenter.vim import finder


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

    monkeypatch.setattr("task_bridge.replica.ReplicaParts._subscribe_to_follows", subscribe_to_nothing)
    monkeypatch.setattr("task_bridge.follower._SWEEP_S", 0.3)
    async with lab.bridge() as bridge:
        await follow(lab)
        await following(lab)
        assert (await call(lab, "unfollow", name="all"))["outcome"] == "unfollowed"
        await until(lambda: not list_follows(bridge), 5.0)


def list_follows(bridge: Bridge) -> list[str]:
    assert bridge.status.follower is not None
    return [report.state for report in bridge.status.follower.reports()]


async def test_a_found_task_begins_as_it_was_found_without_a_poll(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        await follow(lab)
        await following(lab)
        slow = faults.delayed(10.0)
        with (
            lab.vcenter.faults.during(slow, operation="WaitForUpdatesEx"),
            lab.vcenter.faults.during(slow, operation="RetrievePropertiesEx"),
        ):
            target = SimulatedTarget("VirtualMachine", "vm-7")
            task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=target)
            begun = await until(lambda: lab.heard(task), 5.0)
    assert (begun[0]["data"]["kind"], begun[0]["data"]["status"]) == ("watching", "RUNNING")


async def test_what_was_found_is_not_told_after_a_newer_event(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task_bridge.vcenter.vim.source._FOUND_VALID_S", 60.0)
    async with lab.bridge(capacity=1):
        await follow(lab)
        await following(lab)
        busy = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        await lab.listen()
        await until(lambda: lab.heard(busy))
        async with lab.bridge():
            # Found by the one, watched by the other.
            task = lab.vcenter.create(scenarios.stays_pending(), flavour="vim")
            await until(lambda: lab.heard(task))
            lab.vcenter.set(task, status="RUNNING")
            await until(lambda: len(lab.heard(task)) == 2)
        lab.vcenter.set(busy, status="SUCCEEDED")
        await lab.ended(busy)
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task)
        assert [event["data"]["status"] for event in lab.heard(task)] == ["PENDING", "RUNNING", "SUCCEEDED"]


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


async def test_a_follow_that_is_asked_for_again_after_its_end_begins_anew(lab: Lab) -> None:
    async with lab.bridge():
        first = await follow(lab)
        await following(lab)
        await call(lab, "unfollow", name="all")
        between = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await asyncio.sleep(0.1)
        second = await follow(lab)
        assert (second["outcome"], second["follow"]["id"] != first["follow"]["id"]) == ("accepted", True)
        await following(lab, 3)
        task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [task])
        assert await endings(lab) == {task: 1}
        assert between not in await endings(lab)
        numbers = [(event["data"]["kind"], event["data"]["sequence"]) for event in await follow_events(lab)]
        assert numbers == [("following", 1), ("unfollowed", 2), ("following", 1)]


async def test_a_follow_waits_while_vcenter_gives_the_session_no_more_collectors(lab: Lab) -> None:
    """One collector a session and two filters: the second follow waits until the first one ends."""
    lab.vcenter.options.max_history_collectors = 1
    async with lab.bridge():
        await follow(lab)
        await following(lab)
        await follow(lab, name="users", users=["VSPHERE.LOCAL\\deploy"])

        async def waits() -> bool:
            states = {one["name"]: one["state"] for one in (await call(lab, "follows"))["follows"]}
            return states == {"all": "following", "users": "waiting"}

        await until_true(waits)
        task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", user="VSPHERE.LOCAL\\deploy")
        await until_ended(lab, [task])
        await call(lab, "unfollow", name="all")
        later = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", user="VSPHERE.LOCAL\\deploy")
        await until_ended(lab, [later])
        assert await endings(lab) == {task: 1, later: 1}


@pytest.mark.timeout(120)
async def test_a_follow_that_begins_long_ago_keeps_no_other_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "PAGE", 50)
    for _ in range(1_000):
        lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="old")
    async with lab.bridge():
        await follow(lab, operations=["new"])
        await following(lab)
        await follow(lab, name="old", operations=["old"], since="1h")
        await following(lab, 2)
        tasks = []
        for _ in range(4):
            tasks.append(lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="new"))
            await until_ended(lab, tasks[-1:], within_s=6.0)
        assert len(await endings(lab)) < 900  # the other one is still catching up
        lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="old")

        async def has_caught_up() -> bool:
            return len(await endings(lab)) == 1_005

        await until_true(has_caught_up, within_s=60.0)
        assert set((await endings(lab)).values()) == {1}
        assert {event["data"]["kind"] for event in await follow_events(lab)} == {"following"}


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


async def test_a_replaced_follow_does_not_miss_tasks_that_its_new_filter_leaves_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_SAVE_WATCHES", 1)
    async with lab.bridge():
        await follow(lab)
        await following(lab)
        power = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="powerOn")
        await until_ended(lab, [power])
        await until_true(lambda: has_follow_events(lab, 2))
        await follow(lab, operations=["clone"])
        await following(lab, 3)
        clone = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", operation="clone")
        await until_ended(lab, [clone])
        await until_true(lambda: has_follow_events(lab, 4))
        await follow(lab, users=["VSPHERE.LOCAL\\nobody"])
        await following(lab, 5)
        last = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim", user="VSPHERE.LOCAL\\nobody")
        await until_ended(lab, [last])
        reasons = [event["data"]["reason"] for event in await follow_events(lab)]
        assert [reason for reason in reasons if reason != "progressed"] == ["started", "replaced", "replaced"]


async def test_a_task_that_got_the_id_of_another_one_is_watched_when_the_watch_of_that_one_is_over(lab: Lab) -> None:
    async with lab.bridge(vcenters={"lab": lab.vcenter_settings(vim="pull")}):
        await follow(lab)
        await following(lab)
        for number in range(30):
            lab.vcenter.create(scenarios.runs_forever(), flavour="vim", id=f"task-{number}")
        await until_true(lambda: are_watched(lab, 30))
        reborn = [
            lab.vcenter.create(scenarios.succeeds(after_s=3.0), flavour="vim", id=f"task-{number}", operation="clone")
            for number in range(30)
        ]

        async def has_completed() -> bool:
            final = [event["data"] for event in await lab.events() if event["data"].get("final")]
            return {one["task"] for one in final if one["outcome"] == "succeeded"} == set(reborn)

        await until_true(has_completed)
        final = [event["data"]["outcome"] for event in await lab.events() if event["data"].get("final")]
        assert Counter(final) == {"lost": 30, "succeeded": 30}


async def are_watched(lab: Lab, count: int) -> bool:
    return len({event["subject"] for event in await lab.events()}) >= count


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


@pytest.mark.timeout(120)
async def test_a_task_that_cannot_be_read_is_a_gap_and_hides_no_other(lab: Lab) -> None:
    async with lab.bridge():
        await follow(lab)
        await following(lab)
        before = [lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim") for _ in range(3)]
        lab.vcenter.create(scenarios.large_result(40_000_000, after_s=0.0), flavour="vim")
        after = [lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim") for _ in range(3)]
        await until_ended(lab, [*before, *after], within_s=50.0)
        gaps = [event["data"] for event in await follow_events(lab) if event["data"]["kind"] == "gap"]
        assert len(gaps) == 1
        assert gaps[0]["from"] <= gaps[0]["to"]
        assert "a task can't be read" in gaps[0]["reason"]


async def test_a_clock_of_vcenter_that_was_set_back_is_a_gap(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "CHECK_CLOCK_S", 1.0)
    async with lab.bridge():
        await follow(lab)
        await following(lab)
        known = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [known])
        lab.vcenter.options.timestamps = Timestamps(skew_s=-600.0)

        async def has_gap() -> bool:
            return bool((await follow_events(lab))[-1]["data"]["kind"] == "gap")

        await until_true(has_gap)
        assert "clock went back" in (await follow_events(lab))[-1]["data"]["reason"]
        later = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [later])


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
