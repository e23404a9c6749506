"""What tests of follows do and wait for: requests, the events of follows, and the endings of tasks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from lab import PREFIX, Lab


async def follow(lab: Lab, **fields: Any) -> dict[str, Any]:
    return await call(lab, "follow", **{"name": "all"} | fields)


async def call(lab: Lab, verb: str, **fields: Any) -> dict[str, Any]:
    return await lab.ask(verb, fields)


async def follow_events(lab: Lab) -> list[dict[str, Any]]:
    return [event for message, event in await lab.stored() if str(message.subject).startswith(f"{PREFIX}.follows.")]


async def endings(lab: Lab) -> Counter[str]:
    events = [event for message, event in await lab.stored() if str(message.subject).startswith(f"{PREFIX}.events.")]
    return Counter(event["data"]["task"] for event in events if event["data"]["final"])


async def following(lab: Lab, count: int = 1) -> None:
    """Waits until so many events of follows are stored."""
    await until_true(lambda: has_follow_events(lab, count))


async def has_follow_events(lab: Lab, count: int) -> bool:
    return len(await follow_events(lab)) >= count


async def until_true(fact: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await fact():
        assert time.monotonic() < deadline, f"not within {within_s} s: {fact}"
        await asyncio.sleep(0.02)


async def until_ended(lab: Lab, tasks: list[str], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while missing := set(tasks) - set(await endings(lab)):
        assert time.monotonic() < deadline, f"not ended: {missing}"
        await asyncio.sleep(0.02)
