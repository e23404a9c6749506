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
from chaos.world import ACK_WAIT_S, World, killed
from lab import until
from task_bridge.simulator import fates

POLL_S = 0.5
"""How often each task is looked at in these worlds."""
BUSY_S = 0.5
"""What a busy machine may add."""


class LookTimes(Counter[str]):
    """In the place of the simulator's count of looks: the longest time in which each task wasn't looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_s: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def update(self, tasks: Iterable[str] | None = None, **_: Any) -> None:  # type: ignore[override] # as called
        now = time.monotonic()
        for task in tasks or ():
            self.longest_s[task] = max(self.longest_s.get(task, 0.0), now - self._last.get(task, now))
            self._last[task] = now

    def unseen_for_s(self, task: str) -> float:
        return time.monotonic() - self._last.get(task, 0.0)


async def watched(here: World, count: int) -> tuple[list[str], LookTimes]:
    """Tasks that run, each with its first event; and, from now on, when they are looked at."""
    tasks = [here.vcenter.create(fates.runs_forever()) for _ in range(count)]
    await asyncio.gather(*(here.store({"task": task}, task, at=time.time()) for task in tasks))
    await until(lambda: len({heard.subject for heard in here.book.heard}) >= count, within_s=60)
    looks = here.vcenter.journal.looks = LookTimes()
    await until(lambda: len(looks.longest_s) == count)
    return tasks, looks


async def looked_at_again(looks: LookTimes, tasks: list[str]) -> float:
    """The longest that any task wasn't looked at, once all are again."""
    await until(lambda: max(map(looks.unseen_for_s, tasks)) < 2 * POLL_S, within_s=20)
    return max(looks.longest_s.values())


async def ends_well(here: World, tasks: list[str]) -> None:
    """All tasks succeed: each is told once, in order, and nothing is left."""
    for task in tasks:
        here.vcenter.set(task, status="SUCCEEDED")
    deadline = time.monotonic() + 60
    while await here.left() != (0, 0):
        assert time.monotonic() < deadline, await here.left()
        await asyncio.sleep(0.1)
    await here.heard_everything()
    for replica in here.replicas:
        if replica.process.running:
            assert await killed(here, replica, signal.SIGTERM) == 0
    assert violations(await here.account()) == []
    assert [line for replica in here.replicas for line in replica.complaints()] == []


async def test_sigterm_hands_the_watches_to_the_living_within_two_seconds(here: World) -> None:
    await here.begin(2)
    tasks, looks = await watched(here, 100)
    assert await killed(here, here.replicas[0], signal.SIGTERM) == 0
    assert await looked_at_again(looks, tasks) < POLL_S + 2 + BUSY_S
    await ends_well(here, tasks)


async def test_a_dead_replicas_watches_go_to_the_living_within_ack_wait_and_two_seconds(here: World) -> None:
    await here.begin(2)
    tasks, looks = await watched(here, 100)
    await killed(here, here.replicas[0])
    assert await looked_at_again(looks, tasks) < POLL_S + ACK_WAIT_S + 2 + BUSY_S
    await ends_well(here, tasks)


async def test_one_that_wakes_up_believing_that_it_owns_steps_back(here: World) -> None:
    await here.begin(2)
    tasks, looks = await watched(here, 50)
    here.replicas[0].process.send(signal.SIGSTOP)
    await until(lambda: max(map(looks.unseen_for_s, tasks)) > POLL_S + 0.2)
    await looked_at_again(looks, tasks)
    for task in tasks:
        here.vcenter.set(task, progress={"completed": 50, "total": 100})
    here.replicas[0].process.send(signal.SIGCONT)
    await ends_well(here, tasks)


async def test_what_one_has_no_room_for_is_left_to_the_others(here: World) -> None:
    await here.begin(3, BRIDGE_CAPACITY="20")
    tasks, _ = await watched(here, 60)
    await here.store({"task": (late := here.vcenter.create(fates.runs_forever()))}, late, at=time.time())
    consumer = await here.js.consumer_info(here.names.watches_stream, "bridge")
    assert (consumer.num_ack_pending, consumer.num_pending) in {(60, 0), (60, 1)}
    await ends_well(here, [*tasks, late])


@pytest.mark.timeout(180)
async def test_a_rolling_restart_under_many_watches_costs_nobody_two_seconds(here: World) -> None:
    await here.begin(3)
    tasks, looks = await watched(here, 1_000)
    await rolled(here)
    assert await looked_at_again(looks, tasks) < POLL_S + 2 + BUSY_S
    await ends_well(here, tasks)


async def rolled(here: World) -> None:
    """Each replica ends and begins again, one after the other."""
    for replica in here.replicas:
        assert await killed(here, replica, signal.SIGTERM) == 0
        await replica.process.start()
        await replica.process.ready()
