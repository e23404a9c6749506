"""The fenced journal of events: the one publish path of the bridge.

Every event is published with the sequence that its task's last event is expected to have, so of two replicas
that both think they own a task only one gets its event stored: the stream is the fence, never the ack.
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
"""Of an event's headers, and of what a reply has besides."""
_TASK = "vcenter.task"
_CHUNK_BYTES = 128 * 1024


class JournalEntry(NamedTuple):
    """An event in the stream: the event, its sequence, when nats-server stored it, and who wrote it."""

    event: Event
    sequence: int
    stored_at: float
    instance: str
    body: bytes


class JetStreamJournal:
    """Appends events behind the fence and reads the last one of a task. One a process; it has an `instance`."""

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
        """The task's newest event of any watch, None when the stream holds none."""
        subject = self._names.event_filter(vcenter, task)
        if leader:
            stored = await self._streams.read_last(self._names.events_stream, subject, leader=True)
        else:
            stored = await self._newest.read(subject)
        return stored and _entry(stored, vcenter, task)

    async def append(self, draft: Draft, after: int) -> JournalEntry:
        """Stores the event as the one that follows sequence `after`, trying until it is known what is stored.

        Returns the task's last event then: this one, or, where somebody else wrote, theirs (told by `instance`
        and by the event). Its result is stored before it.
        """
        event = await self._with_result(draft)
        body = self._body(event)
        suffix, pauses = "", _Pauses(event)
        while True:
            sequence = await self._publish(event, body, after, suffix, pauses)
            if sequence is not None:
                self._count(event)
                return JournalEntry(event, sequence, self._clock(), self.instance, body)
            found = await self._settled(event)
            if found is not None and (found.sequence > after or found.event.id == event.id):
                self._tell_whose(found, event)
                return found
            newest = found.sequence if found else 0
            if newest < after:
                # What it was to follow has expired or was purged, and the dedupe window may still hold the id.
                after, suffix = newest, f".{secrets.token_hex(4)}"
            self._metrics.publish_retries.inc()
            await pauses.pause()

    def _tell_whose(self, found: JournalEntry, event: Event) -> None:
        if found.instance == self.instance and found.event.id == event.id:
            self._count(event)
        else:
            self._metrics.fenced.inc()

    async def _settled(self, event: Event) -> JournalEntry | None:
        """What the leader says is the task's last event, asked until it answers."""
        pauses = _Pauses(event)
        while True:
            try:
                return await self.read_last(event.data.vcenter, event.data.task, leader=True)
            except NatsUnavailable as error:
                pauses.reason = str(error)
            await pauses.pause()

    def _body(self, event: Event) -> bytes:
        body, room = to_cloudevent(event), self._room(event)
        return body if len(body) <= room else to_cloudevent(shrink_to_fit(event, room))

    def _room(self, event: Event) -> int:
        """How large the event may be: replies carry it, with its watch once more beside it."""
        around = _HEADERS_MAX_BYTES + len(msgspec.json.encode(event.data.watch))
        return self._streams.connection.max_payload - around

    async def _publish(self, event: Event, body: bytes, after: int, suffix: str, pauses: _Pauses) -> int | None:
        """The stored event's sequence, None when it isn't certain that this very publish stored it."""
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
            with span(f"publish {event.kind}", "PRODUCER", parent=event.traceparent, **{_TASK: data.task}):
                ack = await self._streams.publish(self._names.events_stream, subject, body, headers)
        except NatsUnavailable as error:
            pauses.reason = str(error)
            return None
        self._metrics.publish_seconds.observe(time.perf_counter() - began)
        return None if ack.duplicate else ack.seq

    def _count(self, event: Event) -> None:
        data = event.data
        self._metrics.events.labels(data.vcenter, data.kind, data.outcome or "").inc()

    async def _with_result(self, draft: Draft) -> Event:
        """The event with its result inline or stored; where it can't be stored the event goes out without."""
        event, result = draft
        if result is None:
            return event
        if not result.json:
            return attach_result(event, result)
        room = self._room(event) - len(to_cloudevent(event))
        if len(result.json) <= min(INLINE_MAX_BYTES, room):
            return attach_result(event, result)
        try:
            async with asyncio.timeout(STORE_RESULT_S):
                return attach_result(event, result, await self._store(event, result))
        except (TimeoutError, nats.errors.Error, OSError) as error:
            log.warning(
                "result_not_stored",
                vcenter=event.data.vcenter,
                task=event.data.task,
                bytes=len(result.json),
                reason=str(error) or type(error).__name__,
                cure="see whether the bucket's stream is full or missing (task-bridge provision --check)",
            )
            return attach_result(event, UNAVAILABLE)

    async def _store(self, event: Event, result: Result) -> ResultRef:
        """Uploads the result. Of two owners each has its own object where their results differ."""
        bucket = self._names.results_bucket
        digest = hashlib.sha256(result.json).hexdigest()
        name = f"{event.id}-{digest[:16]}"
        chunk = min(_CHUNK_BYTES, self._streams.connection.max_payload)
        while True:
            try:
                store = await self._streams.js.object_store(bucket)
                await store.put(
                    name, result.json, ObjectMeta(name=name, options=ObjectMetaOptions(max_chunk_size=chunk))
                )
            except _UNANSWERED as error:
                log.debug("result_not_stored_yet", object=name, reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                return ResultRef(bucket, name, len(result.json), digest)


class _Pauses:
    """The pauses between tries, growing. That tries go on and on is told of the stream, not of each event."""

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


def _entry(stored: StoredMessage, vcenter: str, task: str) -> JournalEntry:
    headers = stored.headers
    event = from_cloudevent(stored.body, stalled_reported="Bridge-Stalled" in headers)
    return JournalEntry(
        event or _by_headers(stored, vcenter, task),
        stored.sequence,
        stored.stored_at,
        headers.get("Bridge-Instance", ""),
        stored.body,
    )


def _by_headers(stored: StoredMessage, vcenter: str, task: str) -> Event:
    """An event whose body can't be read keeps its place: which watch, which number, whether it was final."""
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
