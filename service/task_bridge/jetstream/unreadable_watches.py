"""A watch message that can't be read, written by hand or by another release, is put aside instead of circulating.

It is told as a rejection; and where its subject tells vCenter and task, the watch ends with its final event.
"""

from __future__ import annotations

import structlog

from ..domain.durations import parse_time
from ..domain.errors import Refused
from ..domain.watch import Watch
from .journal import JournalEntry
from .request_context import RequestContext
from .streams import StoredMessage

log = structlog.get_logger(__name__)

_UNREADABLE = Refused(
    400,
    "invalid_request",
    "A stored watch can't be read by this release of the bridge, so it was put aside. Ask for the task again.",
)


class UnreadableWatches:
    """Puts watch messages aside."""

    def __init__(self, ports: RequestContext) -> None:
        self._ports = ports

    async def quarantine(self, message: StoredMessage) -> None:
        """Told, and over; the message itself is left to the caller. Raises NatsUnavailable."""
        where = self._ports.names.parse_watch_subject(message.subject)
        known = dict(zip(("vcenter", "task"), where, strict=True)) if where else None
        stored_ms = int(message.stored_at * 1000)
        rejection_id = f"watch-{stored_ms}-{message.sequence}"
        await self._ports.rejections.publish(rejection_id, _UNREADABLE, message.body, message.headers, known)
        self._ports.metrics.rejected.labels(_UNREADABLE.code).inc()
        if where is None:
            return
        vcenter, task = where
        last = await self._ports.journal.read_last(vcenter, task, leader=True)
        watch = _as_told(last, vcenter, task) or Watch(
            id=message.headers.get("Nats-Msg-Id") or f"{stored_ms}-{message.sequence}",
            vcenter=vcenter,
            task=task,
            since=message.stored_at,
        )
        await self._ports.watches.abandon(watch)


def _as_told(last: JournalEntry | None, vcenter: str, task: str) -> Watch | None:
    """The watch by its last event, unless that ended it."""
    if last is None or last.event.data.final:
        return None
    ref = last.event.data.watch
    return Watch(
        id=ref.id,
        vcenter=vcenter,
        task=task,
        since=parse_time(ref.since) or last.stored_at,
        timeout_at=parse_time(ref.timeout_at),
        labels=ref.labels,
        traceparent=last.event.traceparent,
        tracestate=last.event.tracestate,
    )
