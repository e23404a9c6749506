"""Events of held watches that the stream has lost: counted, logged, and shown by `/readyz`."""

from __future__ import annotations

import math
import time

import structlog

from ..domain.events import EventData
from ..metrics import Metrics

log = structlog.get_logger(__name__)

LOG_EVERY_S = 10.0
"""One purge may take the memory of 50,000 watches."""
SHOWN_S = 3600.0


class LostMemories:
    """The watches of this process whose last event had gone when the next one was stored."""

    def __init__(self, metrics: Metrics, stream: str) -> None:
        self._metrics = metrics
        self._stream = stream
        self._count = self._logged_count = 0
        self._last_at = self._logged_at = -math.inf

    def report(self, data: EventData) -> None:
        """Count a watch that went on without its memory; `data` is its first event afterwards."""
        self._metrics.lost_memories.inc()
        self._last_at = time.monotonic()
        self._count += 1
        if self._last_at - self._logged_at < LOG_EVERY_S:
            return
        log.warning(
            "memory_lost",
            stream=self._stream,
            watches=self._count - self._logged_count,
            vcenter=data.vcenter,
            task=data.task,
            watch=data.watch.id,
            goes_on_at=data.sequence,
            cure="find who purged, capped or deleted the stream; consumers may miss events that were stored before",
        )
        self._logged_count, self._logged_at = self._count, self._last_at

    @property
    def reason(self) -> str | None:
        """The loss as `/readyz` shows it for an hour. None if nothing was lost."""
        minutes = (time.monotonic() - self._last_at) / 60
        if minutes * 60 > SHOWN_S:
            return None
        watches = "1 watch" if self._count == 1 else f"{self._count} watches"
        return (
            f"the last events of {watches} had gone (purged, evicted or deleted), most recently {minutes:.0f} minutes "
            "ago; consumers may miss events that were stored before"
        )
