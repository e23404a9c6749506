"""Follows of CIS tasks through the whole bridge: what lists of named services show is watched, once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from follow_lab import call, endings, follow, follow_events, following, until_ended, until_true
from lab import Lab
from task_bridge.simulator import SimulatedTarget, scenarios
from task_bridge.simulator.entities import DATACENTER
from task_bridge.vcenter.cis import finder

SOFTWARE = "com.vmware.esx.settings.clusters.software"
CONFIGURATION = "com.vmware.esx.settings.clusters.configuration"
DISCOVERY = ("list", "CurrentTime", "CreateCollectorForTasks", "ReadNextTasks")
UNKNOWN = "com.vmware.nothing.here"


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "LIVE_INTERVAL_S", 0.5)
    monkeypatch.setattr(finder, "WHOLE_INTERVAL_S", 2.0)


async def follow_software(lab: Lab, **fields: Any) -> dict[str, Any]:
    return await follow(lab, **{"apis": ["cis"], "services": [SOFTWARE]} | fields)


async def listed(lab: Lab) -> dict[str, Any]:
    """The only follow as `follows` shows it."""
    (one,) = (await call(lab, "follows"))["follows"]
    return dict(one)


@pytest.mark.parametrize("renderings", ["api", "rest"])
async def test_live_and_short_tasks_of_a_named_service_are_watched_once(lab: Lab, renderings: str) -> None:
    lab.vcenter.options.renderings = renderings  # type: ignore[assignment] # one of those
    old = lab.vcenter.create(scenarios.succeeds_at_once())
    live = lab.vcenter.create(scenarios.succeeds(after_s=4.0))
    await asyncio.sleep(1.1)  # `Date` has whole seconds
    async with lab.bridge():
        await follow_software(lab, labels={"team": "platform"})
        await following(lab)
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0), operation="apply$task")
        short = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1))
        other = lab.vcenter.create(scenarios.succeeds_at_once(), service=CONFIGURATION)
        classic = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [live, task, short])
        assert await endings(lab) == {live: 1, task: 1, short: 1}
        final = (await lab.events(task))[-1]["data"]
        assert (final["watch"]["follow"], final["watch"]["labels"]) == ("all", {"team": "platform"})
        assert (final["operation"], final["result_state"]) == ("apply$task", "inline")
        assert {old, other, classic} & set(await endings(lab)) == set()
        one = await listed(lab)
        assert (one["state"], one["reason"], one["started_watches"], one["gaps"]) == ("following", None, 3, 0)


async def test_tasks_of_an_absence_are_found_afterwards_each_once(lab: Lab) -> None:
    async with lab.bridge():
        await follow_software(lab)
        await following(lab)
        first = [lab.vcenter.create(scenarios.succeeds(after_s=0.2)) for _ in range(5)]
        await until_ended(lab, first)
    absent = [lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(20)]
    async with lab.bridge():
        later = lab.vcenter.create(scenarios.succeeds(after_s=0.2))
        await until_ended(lab, [*first, *absent, later])
        assert set((await endings(lab)).values()) == {1}
    events = [event["data"] for event in await follow_events(lab)]
    assert [event["reason"] for event in events] == ["started", "progressed", "resumed", "progressed"]
    assert events[-1]["service_places"][SOFTWARE]["task"] in {*first, *absent, later}


async def test_a_service_that_cannot_be_listed_says_so_and_stops_no_other(lab: Lab) -> None:
    async with lab.bridge():
        await follow_software(lab, services=[SOFTWARE, UNKNOWN])
        await following(lab)

        async def says_so() -> bool:
            one = await listed(lab)
            return one["state"] == "waiting" and f"provider for service '{UNKNOWN}'" in (one["reason"] or "")

        await until_true(says_so)
        task = lab.vcenter.create(scenarios.succeeds(after_s=0.5))
        await until_ended(lab, [task])
        assert [event["data"]["kind"] for event in await follow_events(lab)] == ["following"]


async def test_a_list_that_is_too_long_is_split_by_status(lab: Lab) -> None:
    lab.vcenter.options.max_listed = 20
    async with lab.bridge():
        await follow_software(lab)
        await following(lab)
        tasks = [lab.vcenter.create(scenarios.succeeds(after_s=0.3)) for _ in range(15)]
        tasks += [lab.vcenter.create(scenarios.fails_with_error(after_s=0.3)) for _ in range(15)]
        await until_ended(lab, tasks, within_s=40.0)
        assert [event["data"]["kind"] for event in await follow_events(lab) if event["data"]["kind"] == "gap"] == []


async def test_a_list_that_cannot_be_split_further_is_a_gap_and_operations_split_it(lab: Lab) -> None:
    lab.vcenter.options.max_listed = 20
    async with lab.bridge():
        await follow_software(lab)
        await follow_software(lab, name="exact", services=[CONFIGURATION], operations=["apply$task", "scan$task"])
        await following(lab, 2)
        for _ in range(25):
            lab.vcenter.create(scenarios.succeeds_at_once())
        exact = []
        for operation in ("apply$task", "scan$task", "check$task"):
            for _ in range(15):
                task = lab.vcenter.create(scenarios.succeeds_at_once(), service=CONFIGURATION, operation=operation)
                exact += [task] if operation != "check$task" else []
        await until_ended(lab, exact, within_s=40.0)

        async def has_gap() -> bool:
            return any(event["data"]["kind"] == "gap" for event in await follow_events(lab))

        await until_true(has_gap)
        (gap,) = [event["data"] for event in await follow_events(lab) if event["data"]["kind"] == "gap"]
        assert gap["name"] == "all"
        assert f"{SOFTWARE}: the SUCCEEDED tasks are more than vCenter lists" in gap["reason"]
        assert gap["from"] < gap["to"]
        lab.vcenter.options.max_listed = 1_000
        later = lab.vcenter.create(scenarios.succeeds_at_once())
        await until_ended(lab, [later])


async def test_live_tasks_that_vanish_are_a_gap(lab: Lab) -> None:
    async with lab.bridge():
        await follow_software(lab)
        await following(lab)
        task = lab.vcenter.create(scenarios.succeeds(after_s=60.0))
        await until_true(lambda: is_watched(lab, task))
        lab.vcenter.forget_all()

        async def has_gap() -> bool:
            return bool((await follow_events(lab))[-1]["data"]["kind"] == "gap")

        await until_true(has_gap)
        assert (await follow_events(lab))[-1]["data"]["reason"] == (
            f"vCenter no longer lists {task}, which hadn't ended"
        )


async def is_watched(lab: Lab, task: str) -> bool:
    return bool(await lab.events(task))


async def test_tasks_below_an_object_are_told_from_others_by_the_inventory(lab: Lab) -> None:
    other = lab.vcenter.entities.put(SimulatedTarget("ClusterComputeResource", "domain-c50"), parent=DATACENTER)
    async with lab.bridge():
        await follow_software(lab, entity={"id": "group-h4", "recursive": True})
        await following(lab)
        cluster = lab.vcenter.create(scenarios.succeeds_at_once())
        host = lab.vcenter.create(scenarios.succeeds_at_once(), target=SimulatedTarget("HostSystem", "host-12"))
        elsewhere = lab.vcenter.create(scenarios.succeeds_at_once(), target=other)
        nothing = lab.vcenter.create(scenarios.succeeds_at_once(), target=None)
        await until_ended(lab, [cluster, host])
        later = lab.vcenter.create(scenarios.succeeds_at_once())
        await until_ended(lab, [later])
        assert {elsewhere, nothing} & set(await endings(lab)) == set()


async def test_both_kinds_of_tasks_are_followed_and_neither_holds_up_the_other(lab: Lab) -> None:
    async with lab.bridge():
        await follow_software(lab, apis=["vim", "cis"], services=[SOFTWARE, "VirtualMachine"])
        await following(lab)
        lab.vcenter.options.list_enabled = False
        first = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await until_ended(lab, [first])
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        lab.vcenter.options.list_enabled = True
        await until_ended(lab, [task])
        classic = lab.vcenter.create(scenarios.succeeds(after_s=2.0), flavour="vim")
        await until_ended(lab, [classic])
        assert await endings(lab) == {first: 1, classic: 1, task: 1}
    data = (await follow_events(lab))[-1]["data"]
    assert (data["place"]["task"], data["service_places"][SOFTWARE]["task"]) == (classic, task)


async def test_discovery_sends_two_requests_a_second_at_most(lab: Lab) -> None:
    services = [SOFTWARE, *(f"com.vmware.esx.settings.clusters.more{number}" for number in range(20))]
    async with lab.bridge():
        lab.vcenter.request_log.clear()
        began = time.monotonic()
        await follow_software(lab, apis=["vim", "cis"], services=[*services, "VirtualMachine"])
        await asyncio.sleep(6.0)
        requests = [one for one in lab.vcenter.request_log.requests if one.operation in DISCOVERY and not one.tasks]
        assert {one.operation for one in requests} == set(DISCOVERY)
        assert len(requests) <= 2 * (time.monotonic() - began) + 1
        assert sum(one.operation == "list" for one in requests) <= len(requests) / 2 + 2  # and classic tasks the others
