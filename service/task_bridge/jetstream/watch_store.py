"""The stream of watches: admit a watch (one per task), read watches, and end them on request or at their timeout.

nats-server refuses a second watch on a task whose watch is in the stream (error 10077), however long ago the first
one was admitted. The answer to such a request is then read from the leaders.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec
import structlog

from ..domain.durations import parse_time
from ..domain.errors import NatsUnavailable, Refused, VCenterUnavailable
from ..domain.events import WatchRef
from ..domain.ports import MemoryLost, TaskSource, find_fence
from ..domain.requests import WatchRequest
from ..domain.subjects import SubjectNames
from ..domain.task import is_vim_task, may_be_same_task
from ..domain.watch import LAST_POLL_S, Policy, Watch, answers_request, identity_from_event, next_event, view_from_event
from ..waits import sleep_to_tick
from ..watcher import find_trouble, is_request_answered
from .journal import JetStreamJournal, JournalEntry
from .ownership import HeldStream
from .streams import StoredMessage, StoreRefused, Streams

log = structlog.get_logger(__name__)

_ADMIT_TRIES = 500
_START_TRIES, _START_RETRY_S = 10, 0.1
_TIMEOUT_PAGE = 1_000
"""Watches read per second in search of timed-out ones: 15 ms of CPU."""
_TIMEOUT_LATE_S = LAST_POLL_S + 2.0
"""A replica that holds a timed-out watch has ended it by then."""
_IDENTITY_S = 5.0
"""How long a requester over the API waits for vCenter, which alone knows whether an id was given to another task."""
_decoder = msgspec.json.Decoder(Watch)


class Admission(NamedTuple):
    """The answer to a watch request: the outcome, the watch in force, and that watch's last event."""

    outcome: str
    watch: WatchRef
    last: JournalEntry | None


class StoredWatch(NamedTuple):
    """A watch and the sequence of its message in the stream."""

    watch: Watch
    sequence: int

    def is_answered_by(self, last: JournalEntry) -> bool:
        """Return whether the watch has ended, or the last event answered its request before the watch started.

        Then its message is about to go: the replica that admitted it, or that takes it over, notices and deletes it.
        """
        return answers_request(last.event, last.stored_at, self.watch)


def build_watch(
    request: WatchRequest,
    vcenter: str,
    since: float,
    *,
    stored_as: str | None,
    stalled_after_s: float,
    trace: tuple[str | None, str | None],
) -> Watch:
    """Return the watch that a request asks for.

    The id of a stored request's watch is made of the request's time and of `stored_as`, its place in its stream, so a
    redelivery makes the same id. The place alone wouldn't do, since streams are recreated. A request over the API has
    none.
    """
    tail = stored_as or f"a{secrets.token_hex(6)}"
    return Watch(
        id=f"{int(since * 1000)}-{tail}",
        vcenter=vcenter,
        task=request.task,
        since=since,
        api="vim" if is_vim_task(request.task) else "cis",
        timeout_at=None if request.timeout is None else since + request.timeout,
        stalled_after_s=stalled_after_s if request.stalled_after is None else request.stalled_after,
        partial_results=request.partial_results,
        details=request.details,
        labels=request.labels,
        traceparent=trace[0],
        tracestate=trace[1],
        stored_request=stored_as is not None,
    )


def rebuild_watch(last: JournalEntry, vcenter: str, task: str) -> Watch:
    """Return the watch as far as its last event describes it."""
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


def decode_watch(stored: StoredMessage) -> StoredWatch | None:
    """Return the watch in a message, None if this release can't read it."""
    try:
        return StoredWatch(_decoder.decode(stored.body), stored.sequence)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def hold_watches(names: SubjectNames) -> HeldStream[Watch]:
    """Return the stream of watches as their owners hold its messages."""
    return HeldStream(names.watches_stream, _decoder.decode, names.watch_subject)


class WatchStore:
    """The stream of watches. Every method raises NatsUnavailable."""

    def __init__(
        self,
        streams: Streams,
        names: SubjectNames,
        journal: JetStreamJournal,
        policy_of: Callable[[str], Policy],
        sources: Mapping[str, TaskSource],
        clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._streams = streams
        self._names = names
        self._journal = journal
        self._policy_of = policy_of
        self._clock = clock
        self._unwatch_locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def admit(self, watch: Watch) -> Admission:
        """Start the watch unless the task is being watched or has completed.

        Whether a stored request was answered before is left to the replica that takes the watch up. Nobody waits for
        that answer, and that replica reads the last event anyway.
        """
        for _ in range(_ADMIT_TRIES):
            sequence = await self._publish_watch(watch)
            if sequence is not None and watch.stored_request:
                return Admission("accepted", watch.ref, None)
            if sequence is not None:
                return await self._confirm_admission(watch, sequence)
            present, last = await self.read_watch_and_last_event(watch.vcenter, watch.task)
            if present is None:
                # A replicated stream frees the subject some milliseconds after the ack (measured). Or the message
                # can't be read, and the replica that received it is about to quarantine it.
                await asyncio.sleep(0.005)
                continue
            if present.watch.id == watch.id or last is None or not present.is_answered_by(last):
                return Admission("already_watching", present.watch.ref, event_of_watch(last, present.watch))
            if last.event.data.kind == "completed":
                return Admission("already_completed", last.event.data.watch, last)
            # The old watch was abandoned and its message is about to go: delete it now.
            await self._streams.delete(self._names.watches_stream, present.sequence)
        raise NatsUnavailable(f"can't start a watch for {watch.task!r}: its previous watch is still being removed")

    async def start(self, watch: Watch) -> bool:
        """Start a watch whose task a follow found. Return False if the task is being watched.

        Whether the task has ended is left to the replica that takes the watch up, unless that was checked before.
        While an earlier task with the same id is being watched, NatsUnavailable is raised: that watch is about to end.
        """
        for _ in range(_START_TRIES):
            if await self._publish_watch(watch) is not None:
                return True
            present, last = await self.read_watch_and_last_event(watch.vcenter, watch.task)
            if present is not None and not _is_of_other_task(present.watch, last, watch):
                return False
            await asyncio.sleep(_START_RETRY_S)
        raise NatsUnavailable(f"can't start a watch for {watch.task!r}: the watch of an earlier task goes on")

    async def has_ended(self, watch: Watch) -> bool:
        """Return whether the task's last event ended this watch, or another one of the same task."""
        last = await self._journal.read_last(watch.vcenter, watch.task)
        return last is not None and answers_request(last.event, last.stored_at, watch)

    async def _publish_watch(self, watch: Watch) -> int | None:
        """Return the sequence under which the watch is stored, None if the task's subject has another watch."""
        subject = self._names.watch_subject(watch.vcenter, watch.task)
        headers = {"Nats-Msg-Id": watch.id}
        try:
            body = msgspec.json.encode(watch)
            return (await self._streams.publish(self._names.watches_stream, subject, body, headers)).seq
        except StoreRefused as refused:
            if refused.is_taken:
                return None
            raise

    async def _confirm_admission(self, watch: Watch, sequence: int) -> Admission:
        """Delete a watch that was just stored if the task's last event answers its request already."""
        last = await self._journal.read_last(watch.vcenter, watch.task, leader=True)
        if last is None or last.event.data.watch.id == watch.id:
            # The watch may even have ended by now: a replica took it up, or somebody unwatched it.
            return Admission("accepted", watch.ref, last)
        if not await self._is_request_answered(watch, last):
            return Admission("accepted", watch.ref, None)
        await self._streams.delete(self._names.watches_stream, sequence)
        return Admission("already_completed", last.event.data.watch, last)

    async def _is_request_answered(self, watch: Watch, last: JournalEntry) -> bool:
        """Return whether the last event answers the request. While vCenter is away, a `completed` does.

        Whether vCenter has given the id to another task meanwhile can't be known then, and the requester waits.
        """
        source = self._sources.get(watch.vcenter)
        try:
            async with asyncio.timeout(_IDENTITY_S):
                return await is_request_answered(source, watch, last.event, last.stored_at)
        except (VCenterUnavailable, TimeoutError):
            return answers_request(last.event, last.stored_at, watch)

    async def read_watch(self, vcenter: str, task: str) -> StoredWatch | None:
        """Return the task's watch, None if there is none."""
        subject = self._names.watch_subject(vcenter, task)
        stored = await self._streams.read_last(self._names.watches_stream, subject, leader=True)
        return stored and decode_watch(stored)

    async def read_watch_and_last_event(
        self, vcenter: str, task: str
    ) -> tuple[StoredWatch | None, JournalEntry | None]:
        """Return the task's watch and its last event as of one moment.

        Over a connection that hangs, two answers of JetStream may be seconds apart. A watch that was there before and
        after its task's last event was read is in force, or that event is its end. Without this check a request could
        get `already_watching` because of a watch that is answered and gone, and would be lost.
        """
        while True:
            present = await self.read_watch(vcenter, task)
            last = await self._journal.read_last(vcenter, task, leader=True)
            if present is None or event_of_watch(last, present.watch):
                return present, last
            still_present = await self.read_watch(vcenter, task)
            if still_present is not None and still_present.sequence == present.sequence:
                return present, last

    async def read_page(self, vcenters: Sequence[str] | None, after: int, limit: int) -> tuple[list[StoredWatch], int]:
        """Return up to `limit` watches of `vcenters` (None: all) after a sequence, oldest first.

        Return also how many more follow.
        """
        stream = self._names.watches_stream
        parts = await asyncio.gather(
            *(self._streams.read_page(stream, subjects, after, limit) for subjects in self._filters(vcenters))
        )
        messages = sorted((message for page, _ in parts for message in page), key=lambda message: message.sequence)
        following = sum(pending for _, pending in parts) + max(0, len(messages) - limit)
        return [watch for watch in map(decode_watch, messages[:limit]) if watch], following

    async def count(self, vcenters: Sequence[str] | None) -> int:
        """Return how many watches `vcenters` (None: all) have, over all replicas."""
        page, following = await self.read_page(vcenters, 0, 1)
        return len(page) + following

    def _filters(self, vcenters: Sequence[str] | None) -> list[str]:
        return [f"{self._names.watches}.{vcenter}.*" for vcenter in (["*"] if vcenters is None else vcenters)]

    async def unwatch(self, vcenter: str, task: str) -> tuple[Watch, JournalEntry]:
        """End the task's watch with its final event, whichever replica owns it, even a dead one.

        Raises Refused: AlreadyEnded (409) if the watch ended first, 404 `not_watched`.
        """
        # Of several calls at the same time only one ends the watch; the others get AlreadyEnded. Between replicas the
        # writer's instance decides which one it is, inside a replica the order of the calls.
        async with self._unwatch_locks.setdefault((vcenter, task), asyncio.Lock()):
            while True:
                present, last = await self.read_watch_and_last_event(vcenter, task)
                if present is None or (last and present.is_answered_by(last)):
                    if last is not None and last.event.data.final:
                        raise AlreadyEnded(last)
                    raise Refused(404, "not_watched", f"Nobody watches {task!r} on {vcenter!r}.")
                final = await self._publish_final_event(present.watch, last)
                if final is not None:
                    await self._streams.delete(self._names.watches_stream, present.sequence)
                    return present.watch, final

    async def abandon(self, watch: Watch, *, timed_out: bool = False) -> None:
        """End a watch whose message can't be read or whose time is up, unless it has ended. Keeps the message."""
        while True:
            last = await self._journal.read_last(watch.vcenter, watch.task, leader=True)
            if last and answers_request(last.event, last.stored_at, watch):
                return
            with contextlib.suppress(AlreadyEnded):
                if not await self._publish_final_event(watch, last, timed_out=timed_out):
                    continue
            return

    async def time_out(self, stored: StoredWatch) -> None:
        """End a watch whose time is up, unless it has ended, and delete its message."""
        await self.abandon(stored.watch, timed_out=True)
        await self._streams.delete(self._names.watches_stream, stored.sequence)

    async def _publish_final_event(
        self, watch: Watch, last: JournalEntry | None, *, timed_out: bool = False
    ) -> JournalEntry | None:
        """Publish the final event. Return it, None if another event was stored after `last` or `last` has gone.

        Raises AlreadyEnded if the watch's final event is covered by another one.
        """
        own = event_of_watch(last, watch)
        memory_lost = False
        if own is None:
            own, memory_lost = await self._journal.read_memory(watch)
        if own is not None and own.event.data.final:
            raise AlreadyEnded(own)
        view, now = view_from_event(own.event if own else None), self._clock()
        if timed_out:
            # The caller found its time up. If the clock was set back since, `next_event` would wait for the deadline.
            view.last_poll_until, now = watch.deadline, max(now, watch.deadline)
            view.trouble = find_trouble(self._sources, watch)
        else:
            view.unwatched = True
        draft = next_event(watch, own.event if own else None, view, now, self._policy_of(watch.vcenter))
        if draft is None:
            return None
        try:
            stored = await self._journal.append(draft, find_fence(last, own), memory_lost=memory_lost)
        except MemoryLost:
            return None
        if event_of_watch(stored, watch) is None:
            # If the confirmation was lost, another watch may have begun after this one's end.
            stored = (await self._journal.read_memory(watch)).last or stored
        # Not the ids: the stored event has another number if memory was lost.
        is_own_event = event_of_watch(stored, watch) and stored.event.kind == draft.event.kind
        return stored if is_own_event and stored.instance == self._journal.instance else None


class AlreadyEnded(Refused):
    """409: the watch to be ended had ended; `last` is its final event."""

    def __init__(self, last: JournalEntry) -> None:
        data = last.event.data
        message = f"The watch of {data.task!r} on {data.vcenter!r} had ended already: {last.event.kind}."
        super().__init__(409, "already_ended", message)
        self.last = last


def _is_of_other_task(present: Watch, last: JournalEntry | None, watch: Watch) -> bool:
    """Return whether `present` is the watch of another task that had the id before the one that a follow found."""
    own = event_of_watch(last, present)
    present_is = present.identity or (identity_from_event(own.event.data) if own else None)
    return present_is is not None and watch.identity is not None and not may_be_same_task(present_is, watch.identity)


def event_of_watch(last: JournalEntry | None, watch: Watch) -> JournalEntry | None:
    """Return the last event if it is one of `watch`, else None."""
    return last if last and last.event.data.watch.id == watch.id else None


async def end_timed_out_watches(
    watches: WatchStore, are_watches_waiting: Callable[[], bool], clock: Callable[[], float]
) -> None:
    """End timed-out watches that no replica has capacity to hold. Runs without end.

    A replica ends the watches that it holds itself, so watches are read (a page per second) only while some wait.
    """
    after = 0
    while True:
        await sleep_to_tick(1.0)
        if not are_watches_waiting():
            continue
        with contextlib.suppress(NatsUnavailable):
            page, following = await watches.read_page(None, after, _TIMEOUT_PAGE)
            for stored in page:
                if clock() > stored.watch.deadline + _TIMEOUT_LATE_S:
                    await watches.time_out(stored)
                    log.info("watch_over", outcome="abandoned.watch_timed_out", **stored.watch.log_keys)
            after = page[-1].sequence if page and following else 0
