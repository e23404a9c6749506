"""Watches the event loop: reports short delays as lag, and ends the process when the loop hangs."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog
from prometheus_client import Gauge

_log = structlog.stdlib.get_logger(__name__)

EXIT_CODE = 70
_WINDOW_S = 30.0
_REPORT_TIMEOUT_S = 1.0
_QUIET = 0.03
"""The share of a core below which the loop has little to do."""
_QUIET_FACTOR = 2.5


class Watchdog:
    """A timer ticks in the loop. A thread ends the process after `limit_s` without a tick.

    The thread counts its own wake-ups, not time: after the process was stopped and continued, or the machine slept,
    it finds one wake-up without a tick, and the process survives. `lag_s` is the longest delay of a tick within the
    last 30 to 60 seconds.

    While the loop has little to do, it ticks 2.5 times less often: the ticks that wake an idle process cost more than
    anything else there. `lag_s` leaves out up to one tick of a delay, so half a second then.
    """

    def __init__(
        self,
        gauge: Gauge,
        *,
        limit_s: float = 10.0,
        tick_s: float = 0.2,
        wake_s: float = 1.0,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.lag_s = 0.0
        gauge.set_function(lambda: self.lag_s)
        self._max_wakeups_without_tick = max(2, round(limit_s / wake_s))
        self._tick_s = tick_s
        self._wake_s = wake_s
        self._end_process = end_process
        self._ticks = 0
        self._ticked_at, self._cpu_s = 0.0, 0.0
        self._stop = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._window_max_s, self._window_end = 0.0, 0.0
        self._window_before_max_s = 0.0
        self._loop_thread_id = 0

    def start(self) -> None:
        """Start to watch the running event loop."""
        self._loop_thread_id = threading.get_ident()
        loop = asyncio.get_running_loop()
        self._ticked_at, self._cpu_s = loop.time(), time.thread_time()
        self._window_end = self._ticked_at + _WINDOW_S
        self._schedule_tick(loop, self._tick_s)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching: the loop may hang from now on."""
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule_tick(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        due = (loop.time() // interval_s + 1) * interval_s  # other timers are due at such times too
        self._timer = loop.call_at(due, self._tick, loop, due)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._ticks += 1
        now, cpu_s = loop.time(), time.thread_time()
        if now >= self._window_end:
            self._window_before_max_s, self._window_max_s = self._window_max_s, 0.0
            self._window_end = now + _WINDOW_S
        self._window_max_s = max(self._window_max_s, now - due)
        self.lag_s = max(self._window_before_max_s, self._window_max_s)
        is_quiet = cpu_s - self._cpu_s < _QUIET * (now - self._ticked_at)
        self._ticked_at, self._cpu_s = now, cpu_s
        self._schedule_tick(loop, self._tick_s * (_QUIET_FACTOR if is_quiet else 1))

    def _watch(self) -> None:
        last_ticks, wakeups_without_tick = self._ticks, 0
        while wakeups_without_tick < self._max_wakeups_without_tick:
            if self._stop.wait(self._wake_s):
                return
            wakeups_without_tick = wakeups_without_tick + 1 if self._ticks == last_ticks else 0
            last_ticks = self._ticks
        # Log from another thread: the process must end even if the log is what blocks.
        reporter = threading.Thread(target=self._report, name="watchdog-report", daemon=True)
        reporter.start()
        reporter.join(_REPORT_TIMEOUT_S)
        self._end_process(EXIT_CODE)

    def _report(self) -> None:
        frame = sys._current_frames().get(self._loop_thread_id)
        stack = "".join(traceback.format_stack(frame)) if frame else None
        limit_s = self._max_wakeups_without_tick * self._wake_s
        _log.critical("event_loop_stands_still", limit_s=limit_s, stack=stack)
