"""Several replicas on one NATS: each has its share, and what one alone can't tell they tell each other."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest

from lab import Lab, until
from task_bridge.app import Bridge
from task_bridge.domain.subjects import SubjectNames
from task_bridge.simulator import scenarios
from task_bridge.vcenter.policy import TIMEOUTS

QUICK = {"ack_wait_s": 2.0}


def held(*bridges: Bridge) -> list[int]:
    return [bridge.status.health().held for bridge in bridges]


@pytest.mark.timeout(90)
async def test_watches_level_out_when_a_replica_comes_and_are_taken_over_when_it_goes(lab: Lab) -> None:
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(60)]
    async with lab.bridge(**QUICK) as first:
        for task in tasks:
            await lab.publish(task)
        await until(lambda: held(first) == [60])
        async with lab.bridge(**QUICK) as second:
            await until(lambda: 25 <= held(second)[0] <= 33 and sum(held(first, second)) == 60, within_s=40)
            late = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(20)]
            for task in late:
                await lab.publish(task)
            await until(lambda: sum(held(first, second)) == 80)
        await until(lambda: held(first) == [80], within_s=5)
        for task in tasks + late:
            lab.vcenter.set(task, status="SUCCEEDED")
        for task in tasks + late:
            await lab.ended(task)
        await until(lambda: held(first) == [0])
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for event in await lab.events():
        numbers[event["subject"]].append(event["data"]["sequence"])
    assert numbers == {task: [1, 2] for task in tasks + late}


async def test_nobody_takes_more_than_its_capacity(lab: Lab) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(12)]
    async with lab.bridge(**QUICK, capacity=5) as first:
        for task in tasks:
            await lab.publish(task)
        await until(lambda: first.status.health().waiting == 7)
        assert held(first) == [5]
        assert "held 5 of 5" in (first.status.health().capacity_reason or "")
        async with lab.bridge(**QUICK, capacity=6) as second:
            await until(lambda: held(first, second) == [5, 6] and first.status.health().waiting == 1)
            lab.vcenter.set(tasks[0], status="SUCCEEDED")
            await until(lambda: held(first, second) == [5, 6] and first.status.health().waiting == 0)


async def test_a_watch_that_nobody_has_room_for_ends_with_its_time(lab: Lab) -> None:
    async with lab.bridge(**QUICK, capacity=1) as full:
        await lab.listen()
        first, second, third = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(3))
        await lab.publish(first)
        await until(lambda: held(full) == [1])
        await lab.publish({"task": second, "timeout": 1})
        await lab.publish({"task": third, "timeout": 600})
        final = await lab.ended(second, within_s=40)
        assert (final["data"]["outcome"], final["data"]["sequence"]) == ("watch_timed_out", 1)
        listed = await lab.ask("list")
        assert [one["task"] for one in listed["watches"]] == [first, third]
        lab.vcenter.set(first, status="SUCCEEDED")
        await until(lambda: lab.heard(third))


async def test_watches_of_a_replica_that_went_wait_where_the_others_are_full(lab: Lab) -> None:
    async with lab.bridge(**QUICK, capacity=2) as small:
        async with lab.bridge(**QUICK) as large:
            tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(10)]
            for task in tasks:
                await lab.publish(task)
            await until(lambda: sum(held(small, large)) == 10)
        await until(lambda: (held(small), small.status.health().waiting) == ([2], 8))
        async with lab.bridge(**QUICK) as another:
            await until(lambda: (held(small, another), small.status.health().waiting) == ([2, 8], 0))


@pytest.mark.timeout(90)
async def test_tasks_that_vanish_together_are_held_whoever_follows_them(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(**QUICK, capacity=2) as first, lab.bridge(**QUICK, capacity=2) as second:
        tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(4)]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: held(first, second) == [2, 2] and all(lab.heard(task) for task in tasks))
        for task in tasks:
            lab.vcenter.forget(task)

        def told() -> bool:
            return all("no longer shows" in (b.status.health().vcenters[0].reason or "") for b in (first, second))

        await until(told, within_s=15)
        # Longer than one that vanishes alone would be waited for.
        over = time.monotonic() + TIMEOUTS.confirm_s + 1.0
        await until(lambda: time.monotonic() > over)
        assert [lab.heard(task)[-1]["data"]["kind"] for task in tasks] == ["watching"] * 4


async def test_an_owner_that_never_heard_of_the_unwatch_learns_of_it(lab: Lab) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge() as bridge:
        await lab.publish(task)
        await until(lambda: held(bridge) == [1] and lab.heard(task))
        names = SubjectNames("vcenter.tasks")
        subscriptions = bridge.status.connection.broker.config.connection_state.connection._subs  # type: ignore[union-attr]
        deaf = [s for s in subscriptions.values() if s.subject.endswith("abandoned.unwatched")]
        assert [s.subject for s in deaf] == [f"{names.events}.*.*.abandoned.unwatched"]
        await deaf[0].unsubscribe()
        assert (await lab.ask("unwatch", task))["outcome"] == "unwatched"
        await until(lambda: held(bridge) == [0])
