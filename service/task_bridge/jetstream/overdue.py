"""Watches whose time is up while no replica has room for them: who holds a watch minds its time, none does here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from ..domain.errors import NatsUnavailable
from ..domain.watch import LAST_POLL_S
from .monitor import Monitor
from .watch_store import WatchStore

log = structlog.get_logger(__name__)

EVERY_S = 1.0
PAGE = 1_000
"""So many are read a second: 15 ms of CPU."""
LATE_S = LAST_POLL_S + 2.0
"""By then whoever holds it has ended it."""


class OverdueWatches:
    """Reads the stored watches in turn, as long as some of them wait."""

    def __init__(self, watches: WatchStore, monitor: Monitor, clock: Callable[[], float]) -> None:
        self._watches = watches
        self._monitor = monitor
        self._clock = clock

    async def run(self) -> None:
        """Without end."""
        after = 0
        while True:
            await asyncio.sleep(EVERY_S)
            if self._monitor.waiting:
                with contextlib.suppress(NatsUnavailable):
                    after = await self._end_some(after)

    async def _end_some(self, after: int) -> int:
        """Those of a page that are overdue; where the next one begins."""
        page, following = await self._watches.read_page(None, after, PAGE)
        for stored in page:
            if self._clock() > stored.watch.deadline + LATE_S:
                await self._watches.time_out(stored)
                log.info("watch_over", outcome="abandoned.watch_timed_out", **stored.watch.log_keys)
        return page[-1].sequence if page and following else 0
