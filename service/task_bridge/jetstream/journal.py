"""The fenced journal of events: the only place where the bridge publishes events.

Each event is published with the sequence that its task's last event is expected to have. If two replicas both believe
that they own a task, the stream stores the event of only one. This sequence is the fence; an ack never is.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js.api import ObjectMeta, ObjectMetaOptions

from ..domain.errors import NatsUnavailable
from ..domain.events import (
    CONTENT_TYPE,
    FINAL_KINDS,
    INLINE_MAX_BYTES,
    Event,
    EventData,
    ResultRef,
    WatchRef,
    attach_result,
    from_cloudevent,
    shrink_to_fit,
    to_cloudevent,
)
from ..domain.ports import EventEntry, EventJournal
from ..domain.subjects import SubjectNames
from ..domain.task import UNAVAILABLE, Result
from ..domain.watch import Draft
from ..metrics import Metrics
from ..tracing import span
from .streams import NewestMessageReader, StoredMessage, Streams

log = structlog.get_logger(__name__)

RETRY_S = 0.25
RETRY_MAX_S = 4.0
STORE_RESULT_S = 30.0
_UNANSWERED = (nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError)
_HEADERS_MAX_BYTES = 4096
"""Room for an event's headers, and for the rest of a reply that carries the event."""
_CHUNK_BYTES = 128 * 1024


class JournalEntry(NamedTuple):
    """An event in the stream, its sequence, when nats-server stored it, and the instance that wrote it."""

    event: Event
    sequence: int
    stored_at: float
    instance: str
    body: bytes


class JetStreamJournal:
    """Appends events behind the fence and reads the last one of a task. One per process, named by its `instance`."""

    def __init__(
        self,
        streams: Streams,
        names: SubjectNames,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        instance: str = "",
    ) -> None:
        self._streams = streams
        self._newest = NewestMessageReader(streams, names.events_stream)
        self._names = names
        self._metrics = metrics
        self._clock = clock
        self.instance = instance or secrets.token_hex(8)

    async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> JournalEntry | None:
        """Return the task's newest event of any watch, None if the stream holds none. Raises NatsUnavailable."""
        subject = self._names.event_filter(vcenter, task)
        if leader:
            stored = await self._streams.read_last(self._names.events_stream, subject, leader=True)
        else:
            stored = await self._newest.read(subject)
        if stored is None:
            return None
        event = from_cloudevent(stored.body, stalled_reported="Bridge-Stalled" in stored.headers)
        if event is None:
            event = _event_from_headers(stored, vcenter, task)
        instance = stored.headers.get("Bridge-Instance", "")
        return JournalEntry(event, stored.sequence, stored.stored_at, instance, stored.body)

    async def append(self, draft: Draft, after: int) -> JournalEntry:
        """Store the event as the one that follows sequence `after`; retry until it is known what is stored.

        The event's result is stored before the event. Returns the task's last event: this one, or another writer's
        (compare `instance` and the event).
        """
        event = await self._place_result(draft)
        body, max_bytes = to_cloudevent(event), self._max_event_bytes(event)
        if len(body) > max_bytes:
            body = to_cloudevent(shrink_to_fit(event, max_bytes))
        suffix, backoff = "", _Backoff(event)
        while True:
            sequence = await self._publish(event, body, after, suffix, backoff)
            if sequence is not None:
                self._count(event)
                return JournalEntry(event, sequence, self._clock(), self.instance, body)
            last = await self._read_last_from_leader(event)
            if last is not None and (last.sequence > after or last.event.id == event.id):
                if last.instance == self.instance and last.event.id == event.id:
                    self._count(event)
                else:
                    self._metrics.fenced.inc()
                return last
            last_sequence = last.sequence if last else 0
            if last_sequence < after:
                # The event before has expired or was purged, and the deduplication window may still hold this id.
                after, suffix = last_sequence, f".{secrets.token_hex(4)}"
            self._metrics.publish_retries.inc()
            await backoff.pause()

    async def _read_last_from_leader(self, event: Event) -> JournalEntry | None:
        """Read the last event of the same task; retry until the leader answers."""
        backoff = _Backoff(event)
        while True:
            try:
                return await self.read_last(event.data.vcenter, event.data.task, leader=True)
            except NatsUnavailable as error:
                backoff.reason = str(error)
            await backoff.pause()

    def _max_event_bytes(self, event: Event) -> int:
        """Return how large the event may be: a reply carries it, and its watch a second time."""
        around = _HEADERS_MAX_BYTES + len(msgspec.json.encode(event.data.watch))
        return self._streams.connection.max_payload - around

    async def _publish(self, event: Event, body: bytes, after: int, suffix: str, backoff: _Backoff) -> int | None:
        """Publish once. Return the stored event's sequence, None if it isn't certain that this publish stored it."""
        data = event.data
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Nats-Msg-Id": event.id + suffix,
            "Nats-Expected-Last-Subject-Sequence": str(after),
            "Nats-Expected-Last-Subject-Sequence-Subject": self._names.event_filter(data.vcenter, data.task),
            "Bridge-Instance": self.instance,
            "Bridge-Watch": data.watch.id,
            "Bridge-Sequence": str(data.sequence),
            "Bridge-Kind": event.kind,
        }
        if event.stalled_reported:
            headers["Bridge-Stalled"] = "1"
        subject = self._names.put_subject(data.vcenter, data.task, event.kind)
        began = time.perf_counter()
        try:
            with span(f"publish {event.kind}", "PRODUCER", parent=event.traceparent, **{"vcenter.task": data.task}):
                ack = await self._streams.publish(self._names.events_stream, subject, body, headers)
        except NatsUnavailable as error:
            backoff.reason = str(error)
            return None
        self._metrics.publish_seconds.observe(time.perf_counter() - began)
        return None if ack.duplicate else ack.seq

    def _count(self, event: Event) -> None:
        data = event.data
        self._metrics.events.labels(data.vcenter, data.kind, data.outcome or "").inc()

    async def _place_result(self, draft: Draft) -> Event:
        """Return the event with its result inline or stored; `unavailable` if it can't be stored."""
        event, result = draft
        if result is None:
            return event
        if not result.json:
            return attach_result(event, result)
        free_bytes = self._max_event_bytes(event) - len(to_cloudevent(event))
        if len(result.json) <= min(INLINE_MAX_BYTES, free_bytes):
            return attach_result(event, result)
        try:
            async with asyncio.timeout(STORE_RESULT_S):
                return attach_result(event, result, await self._store_result(event, result))
        except (TimeoutError, nats.errors.Error, OSError) as error:
            log.warning(
                "result_not_stored",
                vcenter=event.data.vcenter,
                task=event.data.task,
                bytes=len(result.json),
                reason=str(error) or type(error).__name__,
                cure="check whether the bucket's stream is full or missing (task-bridge provision --check)",
            )
            return attach_result(event, UNAVAILABLE)

    async def _store_result(self, event: Event, result: Result) -> ResultRef:
        """Upload the result. The object's name contains its digest: two owners with different results don't collide."""
        bucket = self._names.results_bucket
        digest = (await asyncio.to_thread(hashlib.sha256, result.json)).hexdigest()  # 31 MB may take 0.1 s
        name = f"{event.id}-{digest[:16]}"
        chunk_bytes = min(_CHUNK_BYTES, self._streams.connection.max_payload)
        options = ObjectMetaOptions(max_chunk_size=chunk_bytes)
        while True:
            try:
                store = await self._streams.js.object_store(bucket)
                await store.put(name, result.json, ObjectMeta(name=name, options=options))
            except _UNANSWERED as error:
                log.debug("result_not_stored_yet", object=name, reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                return ResultRef(bucket, name, len(result.json), digest)


_ENTRY_IS_AN_EVENT_ENTRY: type[EventEntry] = JournalEntry
_JOURNAL_IS_AN_EVENT_JOURNAL: type[EventJournal] = JetStreamJournal


class _Backoff:
    """Growing pauses between retries. A stream that refuses for long is logged per stream, not per event."""

    def __init__(self, event: Event) -> None:
        self.reason = ""
        self._event = event
        self._next_s = RETRY_S

    async def pause(self) -> None:
        if self._next_s == RETRY_MAX_S / 2:
            data = self._event.data
            log.debug("event_not_stored_yet", vcenter=data.vcenter, task=data.task, reason=self.reason)
        await asyncio.sleep(self._next_s)
        self._next_s = min(self._next_s * 2, RETRY_MAX_S)


def _event_from_headers(stored: StoredMessage, vcenter: str, task: str) -> Event:
    """Return a stand-in for an event whose body can't be read: its watch, its number, and whether it was final."""
    kind, _, outcome = stored.headers.get("Bridge-Kind", "status").partition(".")
    number = stored.headers.get("Bridge-Sequence", "0")
    data = EventData(
        vcenter=vcenter,
        api="cis",
        task=task,
        watch=WatchRef(stored.headers.get("Bridge-Watch", ""), ""),
        kind=kind,
        outcome=outcome or None,
        final=kind in FINAL_KINDS,
        sequence=int(number) if number.isascii() and number.isdigit() else 0,
    )
    return Event(source="", time=stored.stored_at, data=data)
