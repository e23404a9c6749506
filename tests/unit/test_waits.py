"""Waits until a time end without spinning, on uvloop too, and recurring ones end together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

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


def test_a_sleep_to_a_tick_is_never_longer_than_asked() -> None:
    async def late_s(seconds: float) -> float:
        clock, late = asyncio.get_running_loop().time, []
        for _ in range(3):
            due = clock() + seconds
            await sleep_to_tick(seconds)
            late.append(clock() - due)
        return min(late)  # a busy machine delays some, not all

    async def all_late_s() -> list[float]:
        return await asyncio.gather(*map(late_s, (0.02, TICK_S, 2 * TICK_S, 2.6 * TICK_S)))

    assert max(uvloop.run(all_late_s())) < 0.02


async def test_a_period_of_ticks_is_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for now, seconds in ((10.001, 1.0), (9.999, 1.0), (10.3, 1.0), (10.1, 0.3), (10.3, 0.3), (10.1, 0.0)):
        monkeypatch.setattr(asyncio, "get_running_loop", lambda now=now: SimpleNamespace(time=lambda: now))
        await sleep_to_tick(seconds)
    monkeypatch.undo()
    assert slept == pytest.approx([0.999, 1.001, 0.7, 0.3, 0.2, 0.0])
