"""Waits for an event or a time, as the bridge's loops need them.

uvloop's timers count whole milliseconds and round to the nearest. A wait of 0.4 ms is none, and a loop that waits until
a time has come would turn some thirty times before it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

TICK_S = 0.2


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, but at most so many seconds (rounded up to milliseconds; infinity: without limit).

    Return whether it is set.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(round_up(seconds) if seconds < math.inf else None):
            await event.wait()
    return event.is_set()


def round_up(seconds: float) -> float:
    """Return a wait of at least so many seconds, in whole milliseconds."""
    return math.ceil(seconds * 1000) / 1000


async def sleep_to_tick(seconds: float) -> None:
    """Sleep for about so many seconds, until a tick of TICK_S: what recurs then wakes the process together.

    A wake-up of an idle process costs 0.1 to 0.2 ms of CPU, more than most of what is done in it.
    """
    now = asyncio.get_running_loop().time()
    ticks = max(math.floor(now / TICK_S) + 1, round((now + seconds) / TICK_S))
    await asyncio.sleep(ticks * TICK_S - now)
