"""Waits for an event or a time, as the bridge's loops need them.

uvloop's timers count whole milliseconds and round to the nearest. A wait of 0.4 ms is none, and a loop that waits until
a time has come would turn some thirty times before it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

TICK_S = 0.5
_EARLY_S = 0.002
"""How early a timer may end."""


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
    """Sleep until the last tick within so many seconds, or that long if there is none: what recurs then wakes together.

    A wake-up of an idle process costs 0.1 to 0.2 ms of CPU, more than most of what is done in it.
    """
    now = asyncio.get_running_loop().time()
    tick = math.floor((now + seconds + _EARLY_S) / TICK_S) * TICK_S
    await asyncio.sleep(tick - now if tick > now + _EARLY_S else round_up(seconds))
