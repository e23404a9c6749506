"""Follows through the whole bridge: tasks that nobody asked for get their watches, each one and only one."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from lab import PREFIX, Lab
from task_bridge.simulator import SimulatedTarget, scenarios


async def follow(lab: Lab, **fields: Any) -> dict[str, Any]:
    return await call(lab, "follow", name="all", **fields)


async def call(lab: Lab, verb: str, **fields: Any) -> dict[str, Any]:
    return await lab.ask(verb, fields)


async def follow_events(lab: Lab) -> list[dict[str, Any]]:
    return [event for message, event in await lab.stored() if str(message.subject).startswith(f"{PREFIX}.follows.")]


async def endings(lab: Lab) -> Counter[str]:
    events = [event for message, event in await lab.stored() if str(message.subject).startswith(f"{PREFIX}.events.")]
    return Counter(event["data"]["task"] for event in events if event["data"]["final"])


async def following(lab: Lab) -> None:
    """Waits until the follow has begun."""
    while not await follow_events(lab):
        pass


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
        kinds = [(event["data"]["kind"], event["data"]["reason"]) for event in await follow_events(lab)]
        assert kinds[0] == ("following", "started")
        assert kinds[1] == ("following", "resumed")
        assert "gap" not in dict(kinds)


async def until_ended(lab: Lab, tasks: list[str], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while missing := set(tasks) - set(await endings(lab)):
        assert time.monotonic() < deadline, f"not ended: {missing}"
