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

from ..domain.durations import parse_time
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
    renumber,
    shrink_to_fit,
    to_cloudevent,
)
from ..domain.ports import EventEntry, EventJournal, Memory, MemoryLost
from ..domain.subjects import SubjectNames
from ..domain.task import UNAVAILABLE, Result
from ..domain.watch import Draft, Watch
from ..metrics import Metrics
from ..tracing import span
from .infos import StreamReport
from .lost_memories import LostMemories
from .streams import NewestMessageReader, PubAck, StoredMessage, Streams

log = structlog.get_logger(__name__)

RETRY_S = 0.25
RETRY_MAX_S = 4.0
STORE_RESULT_S = 30.0
_UNANSWERED = (nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError)
_HEADERS_MAX_BYTES = 4096
"""Room for an event's headers, and for the rest of a reply that carries the event."""
_CHUNK_BYTES = 128 * 1024
_PAGE_MESSAGES = 1000
_DUPLICATES = 2
"""How often JetStream must know an event's id, with the event not the task's last, before its id counts as used.

On a replicated stream a publish that was refused may be answered so once.
"""


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
        lost_memories: LostMemories | None = None,
        instance: str = "",
    ) -> None:
        self._streams = streams
        self._newest = NewestMessageReader(streams, names.events_stream)
        self._names = names
        self._metrics = metrics
        self._lost_memories = lost_memories or LostMemories(metrics, names.events_stream)
        self._clock = clock
        self.instance = instance or secrets.token_hex(8)

    async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> JournalEntry | None:
        """Return the task's newest event of any watch, None if the stream holds none. Raises NatsUnavailable."""
        subject = self._names.event_filter(vcenter, task)
        if leader:
            stored = await self._streams.read_last(self._names.events_stream, subject, leader=True)
        else:
            stored = await self._newest.read(subject)
        return None if stored is None else _entry(stored, vcenter, task)

    async def read_memory(self, watch: Watch) -> Memory[JournalEntry]:
        """Search the stream for the watch's newest event where the task's newest isn't its. Raises NatsUnavailable."""
        stream, subject = self._names.events_stream, self._names.event_filter(watch.vcenter, watch.task)
        newest: StoredMessage | None = None
        after, following = 0, 1
        while following:
            page, following = await self._streams.read_page(stream, subject, after, _PAGE_MESSAGES)
            if not page:
                break
            after = page[-1].sequence
            newest = next((stored for stored in reversed(page) if _is_of_watch(stored, watch)), newest)
        if newest is not None:
            return Memory(_entry(newest, watch.vcenter, watch.task), lost=False)
        return Memory(None, (await self._streams.read_report(stream)).may_have_lost(watch.since))

    async def append(self, draft: Draft, after: int, *, memory_lost: bool = False) -> JournalEntry:
        """Store the event as the one that follows sequence `after`; retry until it is known what is stored.

        The event's result is stored before the event. With `memory_lost` it gets a number that its watch can't have
        used. Returns the task's last event: this one, or another writer's (compare `instance` and the event).
        Raises MemoryLost if the event before has gone from the stream, or the event's own id was used before.
        """
        event = await self._place_result(draft)
        number, backoff, began = event.data.sequence, _Backoff(event), self._clock()
        if memory_lost:
            event = await self._renumber(event, backoff)
        while True:
            body = self._encode(event)
            ack = await self._publish(event, body, after, backoff)
            if ack is not None and not ack.duplicate:
                self._count_event(event, number)
                return JournalEntry(event, ack.seq, self._clock(), self.instance, body)
            last = await self._read_last_from_leader(event)
            if last is not None and (last.sequence > after or _is_ahead(last.event, event, number)):
                if last.instance == self.instance and last.event.id == event.id:
                    self._count_event(event, number)
                else:
                    self._metrics.fenced.inc()
                return last
            last_sequence = last.sequence if last else 0
            self._metrics.publish_retries.inc()
            await backoff.pause()
            if last_sequence < after or (ack is not None and backoff.count >= _DUPLICATES):
                raise MemoryLost(last_sequence)
            if last is None and ack is None:
                report = await self._read_report(backoff)
                # A restated event would get another number then, so evictions don't count for it, only a new stream.
                if report.was_created_after(began) or (not memory_lost and report.may_have_lost(began)):
                    raise MemoryLost(0)  # it may have been stored, or its watch ended by another replica

    async def _renumber(self, event: Event, backoff: _Backoff) -> Event:
        """Return the event with a number that its watch can't have used, by nats-server's time."""
        return renumber(event, parse_time((await self._read_report(backoff)).ts) or self._clock())

    async def _read_report(self, backoff: _Backoff) -> StreamReport:
        """Return the stream's state; retry until nats-server answers."""
        while True:
            try:
                return await self._streams.read_report(self._names.events_stream)
            except NatsUnavailable as error:
                backoff.reason = str(error)
                await backoff.pause()

    def _encode(self, event: Event) -> bytes:
        body, max_bytes = to_cloudevent(event), self._max_event_bytes(event)
        return body if len(body) <= max_bytes else to_cloudevent(shrink_to_fit(event, max_bytes))

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

    async def _publish(self, event: Event, body: bytes, after: int, backoff: _Backoff) -> PubAck | None:
        """Publish once, behind the fence: JetStream stores it only if the task's expected last sequence is `after`.

        Return the answer, None if it was refused or unanswered.
        """
        data = event.data
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Nats-Msg-Id": event.id,
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
        return ack

    def _count_event(self, event: Event, number: int) -> None:
        """Count the event, and a lost memory if its number isn't the one that followed."""
        data = event.data
        if data.sequence != number:
            self._lost_memories.report(data)
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
        self.count = 0

    async def pause(self) -> None:
        self.count += 1
        if self._next_s == RETRY_MAX_S / 2:
            data = self._event.data
            log.debug("event_not_stored_yet", vcenter=data.vcenter, task=data.task, reason=self.reason)
        await asyncio.sleep(self._next_s)
        self._next_s = min(self._next_s * 2, RETRY_MAX_S)


def _entry(stored: StoredMessage, vcenter: str, task: str) -> JournalEntry:
    event = from_cloudevent(stored.body, stalled_reported="Bridge-Stalled" in stored.headers)
    if event is None:
        event = _event_from_headers(stored, vcenter, task)
    instance = stored.headers.get("Bridge-Instance", "")
    return JournalEntry(event, stored.sequence, stored.stored_at, instance, stored.body)


def _is_of_watch(stored: StoredMessage, watch: Watch) -> bool:
    return stored.headers.get("Bridge-Watch") == watch.id


def _is_ahead(last: Event, event: Event, number: int) -> bool:
    """Return whether another writer has stored number `number` of the event's watch, or one after it.

    In a stream that was recreated that event may have a lower stream sequence than the one before.
    """
    return last.data.watch.id == event.data.watch.id and last.data.sequence >= number


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
