"""Waits until a time end without spinning, on uvloop too, and recurring ones end together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from task_bridge.waits import TICK_S, round_up, sleep_to_tick, wait_for_event


async def turns_until(due_s: float, wait: Callable[[float], Awaitable[object]]) -> int:
    """How often a loop waits that waits until a time."""
    due, turns = time.monotonic() + due_s, 0
    while (wait_s := due - time.monotonic()) > 0:
        turns += 1
        await wait(wait_s)
    return turns


@pytest.mark.parametrize("due_s", [0.0001, 0.0004, 0.0104, 0.0203])
def test_a_loop_that_waits_until_a_time_does_not_spin(due_s: float) -> None:
    async def with_event(wait_s: float) -> None:
        await wait_for_event(asyncio.Event(), wait_s)

    async def with_sleep(wait_s: float) -> None:
        await asyncio.sleep(round_up(wait_s))

    for wait in (with_event, with_sleep):
        assert uvloop.run(turns_until(due_s, wait)) <= 3


async def test_it_tells_whether_the_event_is_set() -> None:
    event = asyncio.Event()
    assert await wait_for_event(event, 0.01) is False
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await wait_for_event(event, float("inf")) is True
    assert await wait_for_event(event, -1.0) is True


def test_what_recurs_wakes_at_the_same_ticks() -> None:
    async def ticks_of(seconds: float) -> list[float]:
        clock, at = asyncio.get_running_loop().time, []
        for _ in range(3):
            began = clock()
            await sleep_to_tick(seconds)
            at.append(clock())
            assert at[-1] - began < seconds + 2 * TICK_S
        return at

    async def all_ticks() -> list[list[float]]:
        return await asyncio.gather(*map(ticks_of, (0.0, 0.05, TICK_S, 2.6 * TICK_S)))

    for at in uvloop.run(all_ticks()):
        assert at == sorted(at)
        assert min((time_s + 0.002) % TICK_S for time_s in at) < 0.02  # a busy machine delays some, not all
