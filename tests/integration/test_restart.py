"""kill -9 of whatever in the middle of everything: nobody asks again, and every task has exactly one ending."""

from __future__ import annotations

import signal
from collections import defaultdict
from typing import Any

import pytest

from lab import BridgeProcess, Lab, until
from task_bridge.simulator import scenarios

WATCHES = "VCENTER_TASKS_WATCHES"


def broken(events: list[dict[str, Any]]) -> list[str]:
    """What is wrong with histories: gaps, repeats, events after the end, not exactly one end."""
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_task[event["subject"]].append(event["data"])
    wrong = []
    for task, history in by_task.items():
        if [data["sequence"] for data in history] != list(range(1, len(history) + 1)):
            wrong.append(f"{task}: sequences {[data['sequence'] for data in history]}")
        if [data["final"] for data in history] != [False] * (len(history) - 1) + [True]:
            wrong.append(f"{task}: endings {[data['kind'] for data in history]}")
        if len({data["watch"]["id"] for data in history}) != 1:
            wrong.append(f"{task}: several watches")
    return wrong


@pytest.mark.parametrize(
    "history",
    [
        [(1, False), (3, True)],
        [(1, False), (1, False), (2, True)],
        [(1, False), (2, False)],
        [(1, True), (2, True)],
        [(1, True), (2, False)],
    ],
)
def test_the_check_of_histories_rejects_broken_ones(history: list[tuple[int, bool]]) -> None:
    events = [
        {"subject": "t", "data": {"sequence": number, "final": final, "kind": "k", "watch": {"id": "w"}}}
        for number, final in history
    ]
    assert broken(events)
    assert not broken([{"subject": "t", "data": {"sequence": 1, "final": True, "kind": "k", "watch": {"id": "w"}}}])


@pytest.mark.timeout(120)
async def test_a_killed_bridge_goes_on_where_it_was(lab: Lab, process: BridgeProcess) -> None:
    await process.start()
    await process.ready()
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.succeeds(after_s=2.0 + number / 50)) for number in range(100)]
    for task in tasks[:80]:
        await lab.publish(task)
    await until(lambda: len({body["subject"] for _, body in lab.live}) >= 60)
    for task in tasks[80:]:
        await lab.publish(task)
    await process.end(signal.SIGKILL)
    await process.start()
    await until(lambda: sum(body["data"]["final"] for _, body in lab.live) >= 100, within_s=60)
    events = await lab.events()
    assert broken(events) == []
    assert {event["subject"] for event in events} == set(tasks)
    assert {event["outcome"] for event in events if event["data"]["final"]} == {"succeeded"}
    code = await process.end()
    assert (code, (await lab.js.stream_info(WATCHES)).state.messages) == (0, 0)


@pytest.mark.timeout(120)
async def test_a_killed_nats_server_costs_no_event(lab: Lab) -> None:
    async with lab.bridge(ack_wait_s=2.0) as bridge:
        tasks = [lab.vcenter.create(scenarios.succeeds(after_s=2.0 + number / 25)) for number in range(50)]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: bridge.status.health().held == 50)
        for _ in range(2):
            lab.server.stop(signal.SIGKILL)
            await until(lambda: bridge.status.health().status == "unready", within_s=3)
            lab.server.start()
            await until(lambda: bridge.status.health().status == "ok", within_s=20)
        await until(lambda: bridge.status.health().held == 0, within_s=40)
        await until(lambda: lab.client.is_connected)
        events = await lab.events()
    assert broken(events) == []
    assert len({event["subject"] for event in events}) == 50


async def test_sigterm_hands_over_logs_out_and_exits_with_0(lab: Lab, process: BridgeProcess) -> None:
    await process.start()
    await process.ready()
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    await lab.publish(task)
    await until(lambda: lab.heard(task))
    assert await process.end(signal.SIGTERM, within_s=5) == 0
    assert len(lab.vcenter.sessions.live) == 0
    async with lab.bridge() as bridge:
        # Handed back, not waited for until ack_wait is over.
        await until(lambda: bridge.status.health().held == 1, within_s=1.5)
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task)
    assert broken(await lab.events(task)) == []
