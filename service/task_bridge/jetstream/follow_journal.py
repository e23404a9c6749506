"""The fenced journal of follows' events.

As with the events of tasks, each is published with the sequence that the follow's last event is expected to have.
The subjects aren't transformed: a core subscriber may also receive an event that the fence refuses. Consumers of the
stream never do.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import structlog

from ..domain.errors import NatsUnavailable
from ..domain.events import CONTENT_TYPE
from ..domain.follows.event import FollowDraft, FollowEventData, from_follow_cloudevent, to_follow_cloudevent
from ..domain.subjects import SubjectNames
from .streams import StoredMessage, Streams

log = structlog.get_logger(__name__)

_RETRY_S = 0.25
_RETRY_MAX_S = 4.0


class FollowEntry(NamedTuple):
    """An event of a follow in the stream. `data` is None if this release can't read it."""

    data: FollowEventData | None
    sequence: int
    instance: str
    event_id: str
    body: bytes


class FollowJournal:
    """Appends events of follows behind the fence, and reads the last one."""

    def __init__(self, streams: Streams, names: SubjectNames, instance: str) -> None:
        self._streams = streams
        self._names = names
        self.instance = instance

    async def read_last(self, vcenter: str, name: str) -> FollowEntry | None:
        """Return the follow's newest event, None if the stream holds none. Raises NatsUnavailable."""
        subject = self._names.follow_event_filter(vcenter, name)
        stored = await self._streams.read_last(self._names.events_stream, subject, leader=True)
        return None if stored is None else _build_entry(stored)

    async def append(self, draft: FollowDraft, after: int) -> FollowEntry:
        """Store the event if `after` is still the follow's last sequence; retry until it is known what is stored.

        Returns the follow's last event: this one, or another writer's (compare `event_id` and `instance`).
        """
        body, retry_s = to_follow_cloudevent(draft), _RETRY_S
        while True:
            try:
                if sequence := await self._publish(draft, body, after):
                    return FollowEntry(draft.data, sequence, self.instance, draft.id, body)
                last = await self.read_last(draft.data.vcenter, draft.data.name)
                if last is not None and last.sequence > after:
                    return last
                after = last.sequence if last else 0  # the event before has gone from the stream
            except NatsUnavailable as error:
                log.debug("follow_event_not_stored_yet", follow=draft.data.name, reason=str(error))
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _RETRY_MAX_S)

    async def _publish(self, draft: FollowDraft, body: bytes, after: int) -> int | None:
        """Publish once. Return the event's sequence, None if it was refused or unanswered."""
        data = draft.data
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Nats-Msg-Id": f"follow-{draft.id}-{self.instance}",
            "Nats-Expected-Last-Subject-Sequence": str(after),
            "Nats-Expected-Last-Subject-Sequence-Subject": self._names.follow_event_filter(data.vcenter, data.name),
            "Bridge-Instance": self.instance,
            "Bridge-Event": draft.id,
        }
        subject = self._names.follow_event_subject(data.vcenter, data.name, data.kind)
        try:
            ack = await self._streams.publish(self._names.events_stream, subject, body, headers)
        except NatsUnavailable:
            return None
        return None if ack.duplicate else ack.seq


def _build_entry(stored: StoredMessage) -> FollowEntry:
    headers, event = stored.headers, from_follow_cloudevent(stored.body)
    return FollowEntry(
        event.data if event else None,
        stored.sequence,
        headers.get("Bridge-Instance", ""),
        headers.get("Bridge-Event", ""),
        stored.body,
    )
