"""Waits until a time end without spinning, on uvloop too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from task_bridge.waits import round_up, wait_for_event


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
