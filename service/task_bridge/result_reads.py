"""The limit to how many replicas may die while they read the result of one task: after two it is unavailable.

A mark that outlives the replica says that a result is being read. It is written at once while results are few, else
for a result that isn't there after a while, so under load it costs next to nothing. Who stops in good order takes its
mark back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from .domain.errors import NatsUnavailable
from .domain.ports import ResultMarks

DEATHS_MAX = 2
SLOW_S = 0.5
"""Between marks that are written at once, and how long any other result may take before it is marked."""
SLOW_MARKS_MAX = 20
"""With so many slow results vCenter is slow, not a result deadly."""


class _Read:
    """A result that is being read: how many owners before died meanwhile, and whether this one is marked."""

    def __init__(self) -> None:
        self.deaths = 0
        self.is_marked = False
        self.work: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


class ResultReads:
    """The results that this replica waits for, by the ids of their watches."""

    def __init__(self, marks: ResultMarks) -> None:
        self._marks = marks
        self._reads: dict[str, _Read] = {}
        self._marking = 0
        self._clearing: set[asyncio.Task[None]] = set()
        self._free_at = 0.0

    def begin(self, watch_id: str, *, had_owner: bool, give_up: Callable[[], None]) -> None:
        """Mark that the result of the watch is being read. `give_up` is called if it has cost too many replicas."""
        if watch_id in self._reads:
            return
        read, now = _Read(), time.monotonic()
        self._reads[watch_id] = read
        is_free = now >= self._free_at
        if is_free:
            self._free_at = now + SLOW_S
        if is_free or had_owner:
            self._start_marking(watch_id, read, had_owner, give_up)
        else:
            read.timer = asyncio.get_running_loop().call_later(SLOW_S, self._mark_slow, watch_id, read)

    def end(self, watch_id: str) -> None:
        """Take the mark back: the result is there, or the watch is given up in good order."""
        read = self._reads.pop(watch_id, None)
        if read is None:
            return
        if read.timer is not None:
            read.timer.cancel()
        if read.work is not None:
            self._marking -= 1
            clearing = asyncio.create_task(self._clear(watch_id, read, read.work))
            self._clearing.add(clearing)
            clearing.add_done_callback(self._clearing.discard)

    async def close(self) -> None:
        """Take all marks back."""
        for watch_id in list(self._reads):
            self.end(watch_id)
        await asyncio.gather(*self._clearing)

    def _start_marking(self, watch_id: str, read: _Read, had_owner: bool, give_up: Callable[[], None]) -> None:
        self._marking += 1
        read.work = asyncio.create_task(self._begin(watch_id, read, had_owner, give_up))

    async def _begin(self, watch_id: str, read: _Read, had_owner: bool, give_up: Callable[[], None]) -> None:
        with contextlib.suppress(NatsUnavailable):
            if had_owner:
                read.deaths = await self._marks.read(watch_id)
            if read.deaths >= DEATHS_MAX:
                give_up()
                return
            read.is_marked = True
            await self._marks.write(watch_id, read.deaths + 1)

    def _mark_slow(self, watch_id: str, read: _Read) -> None:
        if self._marking < SLOW_MARKS_MAX:  # counted, since thousands may get here at once
            self._start_marking(watch_id, read, False, lambda: None)

    async def _clear(self, watch_id: str, read: _Read, work: asyncio.Task[None]) -> None:
        await work
        if read.is_marked:
            with contextlib.suppress(NatsUnavailable):
                await self._marks.write(watch_id, read.deaths)
