"""Notices an event loop that stands still: as lag while it is short, by ending the process when it lasts."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress

import structlog
from prometheus_client import Gauge

_log = structlog.stdlib.get_logger(__name__)

EXIT_CODE = 70
_WINDOW_S = 30.0
_LAST_WORD_S = 1.0


class Watchdog:
    """A task ticks in the loop; a thread ends the process after `limit_s` without a tick.

    The thread counts its own wake-ups and not time: a process that was stopped and continued, or a machine that
    slept, finds one wake-up without a tick, and lives on. `lag_s` is the worst lateness of a tick within the last
    half to whole minute.
    """

    def __init__(
        self,
        gauge: Gauge,
        *,
        limit_s: float = 10.0,
        tick_s: float = 0.2,
        wake_s: float = 0.5,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.lag_s = 0.0
        self._gauge = gauge
        self._limit = max(2, round(limit_s / wake_s))  # in wake-ups
        self._tick_s = tick_s
        self._wake_s = wake_s
        self._end = end
        self._ticks = 0
        self._stopped = threading.Event()
        self._ticking: asyncio.Task[None] | None = None
        self._main = 0

    def start(self) -> None:
        """In the loop that is to be watched."""
        self._main = threading.get_ident()
        self._ticking = asyncio.create_task(self._tick(), name="watchdog")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    async def stop(self) -> None:
        """From now on the loop may stand still."""
        self._stopped.set()
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking

    async def _tick(self) -> None:
        clock = asyncio.get_running_loop().time
        before, worst, window_ends = 0.0, 0.0, clock() + _WINDOW_S
        while True:
            due = clock() + self._tick_s
            await asyncio.sleep(self._tick_s)
            self._ticks += 1
            now = clock()
            if now >= window_ends:
                before, worst, window_ends = worst, 0.0, now + _WINDOW_S
            worst = max(worst, now - due)
            self.lag_s = max(before, worst)
            self._gauge.set(self.lag_s)

    def _watch(self) -> None:
        seen, without = self._ticks, 0
        while without < self._limit:
            if self._stopped.wait(self._wake_s):
                return
            without = without + 1 if self._ticks == seen else 0
            seen = self._ticks
        # Told by another thread: when the log itself is what blocks, the process must end all the same.
        teller = threading.Thread(target=self._tell, name="watchdog-last-word", daemon=True)
        teller.start()
        teller.join(_LAST_WORD_S)
        self._end(EXIT_CODE)

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._main)
        where = "".join(traceback.format_stack(frame)) if frame else None
        _log.critical("event_loop_stands_still", limit_s=self._limit * self._wake_s, stack=where)
