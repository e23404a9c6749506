"""Several replicas on one NATS: one that leaves hands over, one that dies is succeeded, a late one steps back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from chaos.checker import violations
from chaos.world import ACK_WAIT_S, Replica, World, killed
from lab import until
from task_bridge.simulator import scenarios

POLL_S = 0.5
"""How often each task is looked at in these worlds."""
BUSY_S = 0.5
"""What a busy machine may add."""


class LookTimes(Counter[str]):
    """In the place of the simulator's count of looks: the longest time in which each task wasn't looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_s: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def update(self, tasks: Iterable[str] | None = None, **_: Any) -> None:  # type: ignore[override] # as called
        now = time.monotonic()
        for task in tasks or ():
            self.longest_s[task] = max(self.longest_s.get(task, 0.0), now - self.last.get(task, now))
            self.last[task] = now


async def watched(here: World, count: int) -> tuple[list[str], LookTimes]:
    """Tasks that run, each with its first event; and, from now on, when they are looked at."""
    tasks = [here.vcenter.create(scenarios.runs_forever()) for _ in range(count)]
    await asyncio.gather(*(here.store({"task": task}, task, at=time.time()) for task in tasks))
    await until(lambda: len({heard.subject for heard in here.book.heard}) >= count, within_s=60)
    looks = here.vcenter.request_log.polls = LookTimes()
    await until(lambda: len(looks.longest_s) == count)
    return tasks, looks


async def looked_at_again(looks: LookTimes, tasks: list[str]) -> float:
    """The longest that any task wasn't looked at, once each is again, from now on."""
    now = time.monotonic()
    await until(lambda: all(looks.last[task] > now for task in tasks), within_s=20)
    longest_s = max(looks.longest_s.values())
    looks.longest_s.clear()
    return longest_s


async def ends_well(here: World, tasks: list[str]) -> None:
    """All tasks succeed: each is told once, in order, and nothing is left."""
    for task in tasks:
        here.vcenter.set(task, status="SUCCEEDED")
    deadline = time.monotonic() + 60
    while await here.left() != (0, 0):
        assert time.monotonic() < deadline, await here.left()
        await asyncio.sleep(0.1)
    await here.heard_everything()
    assert await asyncio.gather(*(killed(here, one, signal.SIGTERM) for one in here.replicas)) == [0] * len(
        here.replicas
    )
    assert violations(await here.account()) == []
    assert [line for replica in here.replicas for line in replica.complaints()] == []


@pytest.mark.timeout(120)
async def test_a_replica_that_leaves_dies_or_sleeps_is_succeeded_in_time(here: World) -> None:
    """All in one world, since starting replicas takes longer than what is tested."""
    await here.begin(2)
    tasks, looks = await watched(here, 100)
    first, second = here.replicas
    # SIGTERM hands the watches to the living within two seconds.
    assert await killed(here, first, signal.SIGTERM) == 0
    assert await looked_at_again(looks, tasks) < POLL_S + 2 + BUSY_S
    await begun_again(first)
    # A dead replica's go to the living within ack_wait and two seconds.
    await killed(here, second)
    assert await looked_at_again(looks, tasks) < POLL_S + ACK_WAIT_S + 2 + BUSY_S
    await begun_again(second)
    # One that wakes up believing that it owns steps back.
    first.process.send(signal.SIGSTOP)
    await looked_at_again(looks, tasks)
    for task in tasks:
        here.vcenter.set(task, progress={"completed": 50, "total": 100})
    first.process.send(signal.SIGCONT)
    await ends_well(here, tasks)


async def begun_again(replica: Replica) -> None:
    await replica.process.start()
    await replica.process.ready()


@pytest.mark.timeout(180)
async def test_a_rolling_restart_under_many_watches_costs_nobody_two_seconds(here: World) -> None:
    await here.begin(3)
    tasks, looks = await watched(here, 300)
    await rolled(here)
    assert await looked_at_again(looks, tasks) < POLL_S + 2 + BUSY_S
    await ends_well(here, tasks)


async def rolled(here: World) -> None:
    """Each replica ends and begins again, one after the other."""
    for replica in here.replicas:
        assert await killed(here, replica, signal.SIGTERM) == 0
        await begun_again(replica)
